"""What an exported run does not know: label sets on Test, and KNOWN against pictures of other things.

    python -m benchmarks.abstention --run runs/known --choose CLASSES --unseen CLASSES --photos PHOTOGRAPHS

The run was trained without the classes of both folders, see `benchmarks.left_out`, and then exported.
PHOTOGRAPHS is any folder with pictures of other things; none of them is kept. Beside KNOWN, the result has
the AUROC of other scores from the same features. Choose a score by `--choose`, report it by `--unseen`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image, UnidentifiedImageError

from benchmarks.accuracy import RESULTS, file_name
from export.onnx.known import fit_features
from export.publish.abstention import auroc, set_scores
from export.publish.candidate_files import CANDIDATE_FOLDER, CANDIDATE_NAME
from fruitstand.artefacts import write_json
from fruitstand.contract import FEATURES, KNOWN, KNOWN_LIMIT, PROBABILITIES, SET_SIZE, Preprocessing
from fruitstand.errors import UsageError
from fruitstand.images.reference_decode import decode_rows
from fruitstand.images.synthetic import photograph
from fruitstand.machine.provenance import provenance
from fruitstand.manifest import PreparedData
from fruitstand.model.session import open_session, run_batches
from fruitstand.repository.version_record import read_record
from fruitstand.runs import read_run, read_run_data
from fruitstand.stages import command_line
from training.data.painter import invent_fruit, paint

NUM_PAINTED = 200
PAINTER_SEED = 1234
"""Another one than any data set was painted with."""
NUM_TRAINING = (512, 1024, 2048)
"""Images that the other scores are fitted to."""
SHRINKAGE = 0.1
PICTURES = (".jpg", ".jpeg", ".png")

_Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From features and probabilities to how foreign each image is."""


def measure(
    run: Annotated[Path, typer.Option(help="Exported run.")],
    choose: Annotated[Path | None, typer.Option(help="Folder with images of classes left out.")] = None,
    unseen: Annotated[Path | None, typer.Option(help="Folder with images of others left out.")] = None,
    photos: Annotated[Path | None, typer.Option(help="Folder with pictures of other things.")] = None,
    max_images: Annotated[int, typer.Option(help="Of a split and of a kind.")] = 600,
    results: Annotated[Path, typer.Option(help="Folder for the result.")] = RESULTS,
) -> None:
    """Measure an exported run and record it."""
    trained = read_run(run)
    data, folder = read_run_data(trained, None), run / CANDIDATE_FOLDER
    record = read_record(folder / CANDIDATE_NAME)
    if record.abstention is None:
        raise UsageError(f"{run}: was exported without KNOWN; export it again")
    splits = {
        name: _split(data, name, trained.preprocessing, count)
        for name, count in (("train", max(NUM_TRAINING)), ("val", max_images), ("test", max_images))
    }
    others = {
        "noise": np.random.default_rng(7).integers(
            0, 256, (NUM_PAINTED, *trained.preprocessing.input_size, 3), dtype=np.uint8
        ),
        "synthetic photographs": _resized(
            [photograph(200, 200, seed=1000 + number) for number in range(NUM_PAINTED // 4)],
            trained.preprocessing,
        ),
        "painted others": _resized(_painted(), trained.preprocessing),
    }
    folders = {"classes to choose on": choose, "unseen classes": unseen, "photographs": photos}
    for name, given in folders.items():
        if given is not None:
            others[name] = _resized(_pictures(given, max_images), trained.preprocessing)
    session = open_session(folder / record.serve.cpu_model, record.serve.cpu_engine)
    outputs = {
        name: {one: run_batches(session, pixels, one) for one in (KNOWN, SET_SIZE, PROBABILITIES, FEATURES)}
        for name, pixels in ({key: splits[key][0] for key in ("val", "test")} | others).items()
    }
    training, targets = splits["train"]
    scores = _other_scores(run_batches(session, training, FEATURES), targets)
    result = {
        **provenance(),
        "settings": {"max_images": max_images, "abstention": record.abstention},
        "samples": {name: one[KNOWN][:, 0].round(4).tolist() for name, one in outputs.items()},
        "summary": {
            "dataset": data.source,
            "split_kind": data.split_kind,
            "model_name": trained.model_name,
            "num_classes": len(trained.labels),
            "file": record.serve.cpu_model,
            "top1": float((outputs["test"][PROBABILITIES].argmax(axis=1) == splits["test"][1]).mean()),
            "sets": {
                name: set_scores(
                    outputs[name][KNOWN][:, 0],
                    outputs[name][SET_SIZE][:, 0],
                    outputs[name][PROBABILITIES],
                    splits[name][1],
                )
                for name in ("val", "test")
            },
            # About one half where Test shows the same objects; near one where KNOWN sees that they are new.
            "auroc_val_against_test": auroc(outputs["val"][KNOWN], outputs["test"][KNOWN]),
            "others": {name: _against(outputs["test"], outputs[name], scores) for name in others},
        },
    }
    path = results / file_name(result).replace("accuracy_", "abstention_")
    write_json(path, result)
    print(path)


def _against(
    test: dict[str, np.ndarray], other: dict[str, np.ndarray], scores: dict[str, _Score]
) -> dict[str, Any]:
    """AUROC of Test against another kind of picture, by KNOWN and by each other score."""
    return {
        "num_images": len(other[KNOWN]),
        "not_known": float((other[KNOWN] < KNOWN_LIMIT).mean()),
        "auroc": auroc(test[KNOWN], other[KNOWN]),
        "auroc_of_other_scores": {
            name: auroc(
                -score(test[FEATURES], test[PROBABILITIES]), -score(other[FEATURES], other[PROBABILITIES])
            )
            for name, score in scores.items()
        },
    }


def _other_scores(features: np.ndarray, targets: np.ndarray) -> dict[str, _Score]:
    """What KNOWN could be made of; greater is more foreign."""
    scores: dict[str, _Score] = {"one minus the largest probability": lambda _, one: 1 - one.max(axis=1)}
    for count in NUM_TRAINING:
        some = np.unique(np.linspace(0, len(targets) - 1, count).round().astype(int))
        for name, make in (
            ("nearest training image, cosine", _nearest),
            ("Mahalanobis", _mahalanobis),
            ("relative Mahalanobis", _relative_mahalanobis),
        ):
            scores[f"{name}, {len(some)} images"] = make(features[some], targets[some])
    return scores


def _unit(rows: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return scaled


def _nearest(features: np.ndarray, _: np.ndarray) -> _Score:
    known = _unit(features).T
    return lambda rows, _: 1 - (_unit(rows) @ known).max(axis=1)


def _mahalanobis(features: np.ndarray, targets: np.ndarray) -> _Score:
    model = fit_features(features, targets)
    return lambda rows, _: model.distances(rows)


def _relative_mahalanobis(features: np.ndarray, targets: np.ndarray) -> _Score:
    """Distance to the nearest class less the distance to all images as one class.

    Source:
        Ren et al., A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection (2021).
    """
    unit = _unit(features.astype(np.float64))
    classes, members = np.unique(targets, return_inverse=True)
    means = np.stack([unit[members == one].mean(axis=0) for one in range(len(classes))])
    centre = unit.mean(axis=0)
    within, overall = _whitening(unit - means[members]), _whitening(unit - centre)

    def score(rows: np.ndarray, _: np.ndarray) -> np.ndarray:
        scaled = _unit(rows.astype(np.float64))
        nearest = np.min([(((scaled - one) @ within) ** 2).sum(axis=1) for one in means], axis=0)
        difference: np.ndarray = nearest - (((scaled - centre) @ overall) ** 2).sum(axis=1)
        return difference

    return score


def _whitening(offsets: np.ndarray) -> np.ndarray:
    """(D, D) for unit covariance, which is shrunk towards a multiple of the identity."""
    covariance = offsets.T @ offsets / len(offsets)
    level = np.trace(covariance) / len(covariance)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * level * np.eye(len(covariance))
    whitening: np.ndarray = np.linalg.cholesky(np.linalg.inv(shrunk))
    return whitening


def _split(
    data: PreparedData, name: str, preprocessing: Preprocessing, max_images: int
) -> tuple[np.ndarray, np.ndarray]:
    rows, index = data.split(name), data.label_index()
    rows = rows[:: -(-len(rows) // max_images)]
    pixels = np.stack(list(decode_rows(data, rows, preprocessing)))
    return pixels, np.array([index[row.label] for row in rows])


def _painted() -> list[Image.Image]:
    """Fruits of the painter, each in another turn."""
    return [
        Image.fromarray(
            paint(invent_fruit(number, PAINTER_SEED), turn=number / 7 % 1, tilt=0.3, seed=(number,))
        )
        for number in range(NUM_PAINTED)
    ]


def _pictures(folder: Path, max_images: int) -> list[Image.Image]:
    """The pictures below a folder, and of large ones the middle too: another picture to the model."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    pictures = []
    for path in paths[:: max(1, -(-len(paths) // max_images))]:
        try:
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
        except UnidentifiedImageError:
            continue
        pictures.append(picture)
        width, height = picture.size
        if min(width, height) >= 200:
            pictures.append(picture.crop((width // 4, height // 4, 3 * width // 4, 3 * height // 4)))
    if not pictures:
        raise UsageError(f"{folder}: no picture in it")
    return pictures


def _resized(pictures: list[Image.Image], preprocessing: Preprocessing) -> np.ndarray:
    """(N, H, W, 3) uint8; squashed, as these are not what the preprocessing is for."""
    height, width = preprocessing.input_size
    return np.stack([np.asarray(one.resize((width, height), Image.Resampling.BILINEAR)) for one in pictures])


if __name__ == "__main__":
    command_line(measure)
