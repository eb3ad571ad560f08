"""`fruitstand evaluate`: measure a run or a server; both get the same numbers and files."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fruitstand.artefacts import read_json, write_bytes, write_json
from fruitstand.contract import Preprocessing
from fruitstand.errors import ArtefactError, DataError, UsageError
from fruitstand.manifest import ManifestRow, PreparedData, read_prepared
from fruitstand.runs import META_NAME, Run, read_run, read_run_data

if TYPE_CHECKING:
    from training.evaluate.report import Evaluation

REPORTS_NAME = "evaluation"


def evaluate_run(
    run_directory: Path, *, data_directory: Path | None, split: str, out: Path | None = None
) -> "Evaluation":
    """Evaluate a run offline, in PyTorch.

    Args:
        run_directory: a finished run.
        data_directory: a prepared folder with classes that the run knows; None is the one it was trained on.
        split: train, val or test.
        out: folder for the report. None is `evaluation/<data>-<split>` in the run, and then the run's
            `meta.json` and `MODEL_CARD.md` are updated too.

    Raises:
        ArtefactError: the run is not usable.
        DataError: the data are not usable.
        UsageError: the data have classes that the run does not know.
    """
    run = read_run(run_directory)
    data = read_prepared(data_directory) if data_directory else read_run_data(run, None)
    _check_classes(data, run.labels, "the run")
    data.split(split)
    result = _report_run(run, data, split, out or _report_folder(run.directory, data, split))
    if out is None:
        from training.evaluate.model_card import add_evaluation

        # Read meta.json again: another evaluation may have changed it meanwhile.
        meta = add_evaluation(run.directory, read_json(run.directory / META_NAME), result.to_json())
        write_json(run.directory / META_NAME, meta)
    return result


def finish_evaluation(run_directory: Path, meta: dict[str, Any], data: PreparedData) -> dict[str, Any]:
    """Evaluate the saved weights of a run that has just been trained, and write its model card.

    Returns:
        `meta` with `metrics` (of Test, or of validation if there is no Test) and `evaluations`. The caller
        writes `meta.json` last, because it marks the run as finished.
    """
    from training.evaluate.model_card import add_evaluation

    split = "test" if any(row.split == "test" for row in data.rows) else "val"
    preprocessing = Preprocessing.from_dict(meta["preprocessing"])
    name, labels = meta["config"]["model_name"], meta["labels"]
    run = Run(run_directory, name, labels, preprocessing, data.directory, meta)
    folder = _report_folder(run_directory, data, split)
    result = _report_run(run, data, split, folder).to_json()
    write_bytes(run_directory / "confusion.png", (folder / "confusion.png").read_bytes())
    names = ("top1", "top5", "macro_f1", "ece", "num_images", "per_class")
    metrics = {name: result[name] for name in names}
    return add_evaluation(run_directory, {**meta, "metrics": {split: metrics}}, result)


def evaluate_answers(
    data_directory: Path,
    split: str,
    ask: Callable[[list[Path]], Iterable[tuple[Mapping[str, float], float | None] | str]],
    *,
    out: Path | None = None,
    url: str = "",
) -> "Evaluation":
    """Evaluate a server's answers for the images of a split.

    Args:
        data_directory: a prepared folder with classes that the server knows.
        split: train, val or test.
        ask: returns for each image the probabilities of all classes by label and its `known` (None if the
            version was not calibrated), or an error message.
        out: folder for the report; None writes none.
        url: the server's address, for the report.

    Raises:
        DataError: the data are not usable, or the server rejected an image.
        UsageError: the data have classes that the server does not know.
    """
    data = read_prepared(data_directory)
    rows = data.split(split)
    if out is not None:
        from training.evaluate.report import check_report_folder

        check_report_folder(out)
    labels: list[str] = []
    probabilities = np.zeros((0, 0), np.float32)
    known = np.full(len(rows), np.nan, np.float32)
    paths = [data.directory / row.path for row in rows]
    for number, (path, answer) in enumerate(zip(paths, ask(paths), strict=True)):
        if isinstance(answer, str):
            raise DataError(f"{path}: {answer}")
        by_label, one_known = answer
        known[number] = np.nan if one_known is None else one_known
        if not labels:
            labels = sorted(by_label)
            _check_classes(data, labels, "the server")
            probabilities = np.zeros((len(rows), len(labels)), np.float32)
        probabilities[number] = [by_label[label] for label in labels]

    from training.evaluate.report import report_answers

    said = None if np.isnan(known).any() else known
    return report_answers(data, split, labels, probabilities, known_scores=said, out=out, url=url)


def _check_classes(data: PreparedData, known: list[str], who: str) -> None:
    """Refuse data with classes that the model was not trained on."""
    unknown = sorted(set(data.labels) - set(known))
    if unknown:
        raise UsageError(
            f"{data.directory}: {who} knows {len(known)} classes, but not {len(unknown)} of the"
            f" {len(data.labels)} in these data, such as {unknown[0]!r}; evaluate on data with known classes"
        )


def _report_folder(run_directory: Path, data: PreparedData, split: str) -> Path:
    return run_directory / REPORTS_NAME / f"{data.directory.resolve().name}-{split}"


def _report_run(run: Run, data: PreparedData, split: str, out: Path) -> "Evaluation":
    # Imported here because they take seconds to import; usage errors are reported before.
    from training.evaluate.predict import predict_probabilities
    from training.evaluate.report import check_report_folder, report_answers

    check_report_folder(out)
    rows = data.split(split)
    seen = _seen_in_training(run, rows)
    about = {"model_name": run.model_name, "seen_in_training": seen}
    probabilities = predict_probabilities(run, data, rows)
    return report_answers(data, split, run.labels, probabilities, out=out, **about)


def _seen_in_training(run: Run, rows: list[ManifestRow]) -> dict[str, int] | None:
    """How many images the run has seen in training: the same file, film or object; None if unknown."""
    try:
        own = read_prepared(run.data_directory)
    except (DataError, ArtefactError):
        return None
    if own.manifest_sha256 != run.meta["data"]["manifest_sha256"]:
        return None
    trained = own.split("train")
    files = {row.sha256 for row in trained}
    films = {(row.object, row.film) for row in trained}
    objects = {row.object for row in trained}
    return {
        "files": sum(row.sha256 in files for row in rows),
        "films": sum((row.object, row.film) in films for row in rows),
        "objects": sum(row.object in objects for row in rows),
    }
