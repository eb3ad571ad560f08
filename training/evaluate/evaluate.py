"""`fruitstand evaluate`: how good a run is, or a server; the same numbers and files for both."""

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
        data_directory: a prepared folder whose classes the run knows; None takes the one it was trained on.
        split: train, val or test.
        out: folder for the report. None takes `evaluation/<data>-<split>` in the run, and then the run's
            `meta.json` and `MODEL_CARD.md` tell of it too.

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

        # Read again: another evaluation may have been recorded meanwhile.
        meta = add_evaluation(run.directory, read_json(run.directory / META_NAME), result.to_json())
        write_json(run.directory / META_NAME, meta)
    return result


def finish_evaluation(run_directory: Path, meta: dict[str, Any], data: PreparedData) -> dict[str, Any]:
    """Evaluate the saved weights of a run that has just been trained, and write its model card.

    Args:
        run_directory: holds the weights.
        meta: all that `meta.json` is to hold, but for the evaluation.
        data: what the run was trained on.

    Returns:
        `meta` with `metrics` (of the test split, or of validation where there is no test) and `evaluations`.
        Writing `meta.json` is left to the caller: it says that a run is finished.
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
    ask: Callable[[list[Path]], Iterable[Mapping[str, float] | str]],
    *,
    out: Path | None = None,
    url: str = "",
) -> "Evaluation":
    """Evaluate what a server answers for the images of a split.

    Args:
        data_directory: a prepared folder whose classes are served.
        split: train, val or test.
        ask: gives for each image the probabilities of all classes by label, or why there are none.
        out: folder for the report; None writes none.
        url: whom it asks.

    Raises:
        DataError: the data are not usable, or an image got no answer.
        UsageError: the data have classes that are not served.
    """
    data = read_prepared(data_directory)
    rows = data.split(split)
    if out is not None:
        from training.evaluate.report import check_report_folder

        check_report_folder(out)
    labels: list[str] = []
    probabilities = np.zeros((0, 0), np.float32)
    paths = [data.directory / row.path for row in rows]
    for number, (path, answer) in enumerate(zip(paths, ask(paths), strict=True)):
        if isinstance(answer, str):
            raise DataError(f"{path}: {answer}")
        if not labels:
            labels = sorted(answer)
            _check_classes(data, labels, "the server")
            probabilities = np.zeros((len(rows), len(labels)), np.float32)
        probabilities[number] = [answer[label] for label in labels]

    from training.evaluate.report import report_answers

    return report_answers(data, split, labels, probabilities, out=out, url=url)


def _check_classes(data: PreparedData, known: list[str], who: str) -> None:
    """A class that was never learned can only be answered wrongly: that is no evaluation."""
    unknown = sorted(set(data.labels) - set(known))
    if unknown:
        raise UsageError(
            f"{data.directory}: {len(unknown)} of its {len(data.labels)} classes, such as {unknown[0]!r}, are"
            f" none of the {len(known)} of {who}; evaluate on data with the classes it knows"
        )


def _report_folder(run_directory: Path, data: PreparedData, split: str) -> Path:
    return run_directory / REPORTS_NAME / f"{data.directory.resolve().name}-{split}"


def _report_run(run: Run, data: PreparedData, split: str, out: Path) -> "Evaluation":
    # Only now: these take seconds to import, and what can be refused has been.
    from training.evaluate.predict import predict_probabilities
    from training.evaluate.report import check_report_folder, report_answers

    check_report_folder(out)
    rows = data.split(split)
    seen = _seen_in_training(run, rows)
    about = {"model_name": run.model_name, "seen_in_training": seen}
    probabilities = predict_probabilities(run, data, rows)
    return report_answers(data, split, run.labels, probabilities, out=out, **about)


def _seen_in_training(run: Run, rows: list[ManifestRow]) -> dict[str, int] | None:
    """How many of the images are files, of films, of objects the run was trained on; None: unknown."""
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
