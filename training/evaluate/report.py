"""Write the report on a classifier's answers for one split: numbers, tables and pictures in one folder.

evaluation.json    all numbers
per_class.csv      recall, precision, F1 and count of each class
confusion.csv      a row for each class that has images, a column for each answer
slices.csv         accuracy of each fruit, variety and range of brightness
mistakes.csv       every wrong answer, the most confident first
confusion.png  reliability.png  mistakes.png
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fruitstand.artefacts import atomic_directory, write_json
from fruitstand.contract import KNOWN_LIMIT
from fruitstand.errors import UsageError
from fruitstand.images.thumbnail import THUMBNAIL_SIDE
from fruitstand.manifest import PreparedData
from training.data.thumbnails import brightness, thumbnails
from training.evaluate.comparison import Baseline, Slice, find_baseline, slice_accuracies, wilson_interval
from training.evaluate.metrics import classification_metrics, confusion_matrix, reliability_bins
from training.evaluate.mistakes import Mistake, write_mistake_sheet
from training.plots import plot_confusion, plot_reliability

EVALUATION_NAME = "evaluation.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """Images of one class that were classified as another."""

    truth: str
    answer: str
    count: int
    share: float
    """Share of the true class's images, 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The content of `evaluation.json`; accuracies are 0 to 1."""

    model_name: str | None = None
    """Set if a run was evaluated."""
    url: str | None = None
    """Set if a server was evaluated."""
    seen_in_training: dict[str, int] | None = None
    """Number of images whose file, film or object was in the train split; None if unknown."""
    data: str
    """The prepared folder's name."""
    data_source: str
    split: str
    split_kind: str
    manifest_sha256: str
    top1: float
    top5: float
    macro_f1: float
    ece: float
    num_images: int
    known: float | None = None
    """Share of the images that show a known class, as the server says; None for a run."""
    per_class: dict[str, dict[str, float]]
    """Recall, precision, f1 and count, keyed by label."""
    top1_interval: list[float]
    """95 % confidence interval of `top1`, assuming independent images."""
    baseline: dict[str, dict[str, Any]]
    """Scores of the baselines `nearest_neighbour` and `majority`."""
    reliability: list[dict[str, float]]
    """See `training.evaluate.metrics.reliability_bins`."""
    slices: dict[str, list[Slice]]
    confusions: list[Confusion]
    """The most frequent first."""

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-ready values, with either `model_name` or `url`."""
        values = asdict(self)
        return {key: one for key, one in values.items() if one is not None or key == "seen_in_training"}


def report_answers(
    data: PreparedData,
    split: str,
    labels: list[str],
    probabilities: np.ndarray,
    *,
    known_scores: np.ndarray | None = None,
    out: Path | None,
    **about: Any,
) -> Evaluation:
    """Compute all scores, and write the report.

    Args:
        data: the prepared folder.
        split: train, val or test.
        labels: C class names that the classifier knows, which include those of the data.
        probabilities: (N, C) float32 for the split's rows, in manifest order.
        known_scores: (N,) `known` of each image, 0 to 1; None if the version was not calibrated.
        out: the folder to write; an earlier report there is replaced. None writes nothing.
        **about: `model_name`, `url` and `seen_in_training` of `Evaluation`.

    Raises:
        UsageError: `out` holds something else.
        DataError: an image was changed since it was prepared.
    """
    if out is not None:
        check_report_folder(out)
    rows, number = data.split(split), {label: index for index, label in enumerate(labels)}
    targets = np.array([number[row.label] for row in rows])
    answers = probabilities.argmax(axis=1)
    right = answers == targets
    small = thumbnails(data)
    baseline = find_baseline(data, split, small)
    nearest = np.array([number[label] for label in baseline.nearest])
    of_split = np.array([row.split == split for row in data.rows])
    confusion = confusion_matrix(probabilities, targets, len(labels))
    result = Evaluation(
        **about,
        data=data.directory.resolve().name,
        data_source=data.source,
        split=split,
        split_kind=data.split_kind,
        manifest_sha256=data.manifest_sha256,
        **classification_metrics(probabilities, targets, labels),
        known=None if known_scores is None else float((known_scores >= KNOWN_LIMIT).mean()),
        top1_interval=list(wilson_interval(int(right.sum()), len(rows))),
        baseline=_baseline_scores(baseline, nearest, targets, number, labels),
        reliability=reliability_bins(probabilities, targets),
        slices=slice_accuracies(rows, brightness(small[of_split]), right, nearest == targets),
        confusions=_confusions(confusion, labels),
    )
    if out is not None:
        mistakes = [
            Mistake(
                path=rows[i].path,
                object=rows[i].object,
                truth=rows[i].label,
                answer=labels[answers[i]],
                confidence=float(probabilities[i, answers[i]]),
                is_known=known_scores is None or bool(known_scores[i] >= KNOWN_LIMIT),
            )
            for i in np.flatnonzero(~right)
        ]
        mistakes.sort(key=lambda one: (-one.confidence, one.path))
        _write(out, data, result, confusion, labels, mistakes)
    return result


def check_report_folder(out: Path) -> None:
    """Check that `out` is free or holds an earlier report.

    Raises:
        UsageError: it holds something else.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / EVALUATION_NAME).is_file()):
        raise UsageError(f"{out}: exists and is not an evaluation report; choose another --out")


def _baseline_scores(
    baseline: Baseline, nearest: np.ndarray, targets: np.ndarray, number: dict[str, int], labels: list[str]
) -> dict[str, dict[str, Any]]:
    """Scores of the nearest neighbour and of the most common class."""
    answered = {"nearest_neighbour": nearest, "majority": np.full_like(targets, number[baseline.majority])}
    scores: dict[str, dict[str, Any]] = {}
    for name, answers in answered.items():
        certain = np.zeros((len(targets), len(labels)), np.float32)
        certain[np.arange(len(targets)), answers] = 1
        metrics = classification_metrics(certain, targets, labels)
        recalls = {label: row["recall"] for label, row in metrics["per_class"].items()}
        scores[name] = {"top1": metrics["top1"], "macro_f1": metrics["macro_f1"], "recall": recalls}
    scores["majority"] = {"label": baseline.majority, **scores["majority"]}
    del scores["majority"]["recall"]  # always 1 for that class and 0 for the others
    scores["nearest_neighbour"] |= {"num_train_images": baseline.num_train, "side_px": THUMBNAIL_SIDE}
    return scores


def _confusions(confusion: np.ndarray, labels: list[str]) -> list[Confusion]:
    """All pairs of confused classes, the most frequent first."""
    wrong = confusion - np.diag(np.diag(confusion))
    pairs = [
        Confusion(
            truth=labels[i],
            answer=labels[j],
            count=int(wrong[i, j]),
            share=float(wrong[i, j] / confusion[i].sum()),
        )
        for i, j in zip(*np.nonzero(wrong), strict=True)
    ]
    return sorted(pairs, key=lambda one: (-one.count, one.truth, one.answer))


def _write(
    out: Path,
    data: PreparedData,
    result: Evaluation,
    confusion: np.ndarray,
    labels: list[str],
    mistakes: Sequence[Mistake],
) -> None:
    title = f"{data.source}, {data.split_kind} split, {result.split}"
    with atomic_directory(out, replace=True) as staged:
        write_json(staged / EVALUATION_NAME, result.to_json())
        nearest = result.baseline["nearest_neighbour"]["recall"]
        _write_csv(
            staged / "per_class.csv",
            ["label", "recall", "precision", "f1", "count", "nearest_neighbour_recall"],
            ([label, *row.values(), nearest[label]] for label, row in result.per_class.items()),
        )
        _write_csv(
            staged / "confusion.csv",
            ["truth", *labels],
            ([labels[i], *confusion[i].tolist()] for i in np.flatnonzero(confusion.sum(axis=1))),
        )
        _write_csv(
            staged / "slices.csv",
            ["slice", "name", "num_images", "top1", "low_95", "high_95", "nearest_neighbour", "small"],
            (
                [
                    *(kind, one.name, one.num_images, one.top1),
                    *(*one.interval, one.nearest_neighbour, one.small),
                ]
                for kind, members in result.slices.items()
                for one in members
            ),
        )
        _write_csv(
            staged / "mistakes.csv",
            ["path", "truth", "answer", "confidence"],
            ([one.path, one.truth, one.answer, f"{one.confidence:.4f}"] for one in mistakes),
        )
        plot_confusion(staged / "confusion.png", confusion, labels, title)
        plot_reliability(staged / "reliability.png", result.reliability, title)
        write_mistake_sheet(staged / "mistakes.png", data.directory, mistakes, title)


def _write_csv(path: Path, head: list[str], lines: Iterable[list]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(lines)
