"""Accuracy, F1 and calibration of a classifier from its probabilities."""

import numpy as np
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

NUM_BINS = 15


def classification_metrics(probabilities: np.ndarray, targets: np.ndarray, labels: list[str]) -> dict:
    """Compute all scores.

    Args:
        probabilities: (N, C) float32, rows sum to 1.
        targets: (N,) int64, indices into `labels`.
        labels: C class names; classes without images do not count in means over classes.

    Returns:
        `top1`, `top5`, `macro_f1`, `ece` (15 bins), all 0 to 1; `num_images`; `per_class` with recall,
        precision, f1 and count by label.
    """
    num_classes = len(labels)
    p, t = torch.from_numpy(probabilities), torch.from_numpy(targets)
    bins = reliability_bins(probabilities, targets)
    per_class = class_scores(confusion_matrix(probabilities, targets, num_classes), labels)
    return {
        "top1": float((p.argmax(1) == t).double().mean()),
        "top5": float(multiclass_accuracy(p, t, num_classes, top_k=min(5, num_classes), average="micro")),
        "macro_f1": float(np.mean([row["f1"] for row in per_class.values()])),
        "ece": sum(one["count"] * abs(one["accuracy"] - one["confidence"]) for one in bins) / len(targets),
        "num_images": len(targets),
        "per_class": per_class,
    }


def class_scores(confusion: np.ndarray, labels: list[str]) -> dict[str, dict[str, float]]:
    """Recall, precision, F1 and count of each class that has images, from the confusion matrix."""
    counts, answered = confusion.sum(axis=1), confusion.sum(axis=0)
    return {
        label: {
            "recall": float(confusion[i, i] / counts[i]),
            "precision": float(confusion[i, i] / max(answered[i], 1)),
            "f1": float(2 * confusion[i, i] / (counts[i] + answered[i])),
            "count": int(counts[i]),
        }
        for i, label in enumerate(labels)
        if counts[i]
    }


def confusion_matrix(probabilities: np.ndarray, targets: np.ndarray, num_classes: int) -> np.ndarray:
    """The confusion matrix, (C, C) int64: rows are the truth, columns the answers."""
    p, t = torch.from_numpy(probabilities), torch.from_numpy(targets)
    return multiclass_confusion_matrix(p, t, num_classes).numpy()


def reliability_bins(probabilities: np.ndarray, targets: np.ndarray) -> list[dict[str, float]]:
    """Accuracy by confidence, in 15 equal bins; empty bins are left out.

    Args:
        probabilities: (N, C) float32.
        targets: (N,) int64.

    Returns:
        Bounds, count, mean confidence and accuracy of each bin. The expected calibration error is the mean of
        their absolute difference, weighted by count.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == targets
    # A confidence of exactly 1 belongs to the last bin.
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    return [
        {
            "low": number / NUM_BINS,
            "high": (number + 1) / NUM_BINS,
            "count": int(inside.sum()),
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(right[inside].mean()),
        }
        for number in range(NUM_BINS)
        if (inside := bins == number).any()
    ]
