"""How good a classifier is: the same numbers from a run and from a server."""

import numpy as np
import torch
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_f1_score,
)


def classification_metrics(probabilities: np.ndarray, targets: np.ndarray, labels: list[str]) -> dict:
    """Accuracy, F1 and calibration.

    Args:
        probabilities: (N, C) float32, rows sum to 1.
        targets: (N,) int64, indices into `labels`.
        labels: C class names.

    Returns:
        `top1`, `top5`, `macro_f1`, `ece` (15 bins), all 0 to 1; `num_images`; `per_class` with recall and
        count by label.
    """
    num_classes = len(labels)
    p, t = torch.from_numpy(probabilities), torch.from_numpy(targets)
    confusion = multiclass_confusion_matrix(p, t, num_classes)
    counts = confusion.sum(dim=1)
    return {
        "top1": float((p.argmax(1) == t).double().mean()),
        "top5": float(multiclass_accuracy(p, t, num_classes, top_k=min(5, num_classes), average="micro")),
        "macro_f1": float(multiclass_f1_score(p, t, num_classes, average="macro")),
        "ece": float(multiclass_calibration_error(p, t, num_classes, n_bins=15)),
        "num_images": len(targets),
        "per_class": {
            label: {"recall": float(confusion[i, i] / counts[i]), "count": int(counts[i])}
            for i, label in enumerate(labels)
            if counts[i]
        },
    }


def confusion_matrix(probabilities: np.ndarray, targets: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, C) int64: row is the truth, column the answer."""
    p, t = torch.from_numpy(probabilities), torch.from_numpy(targets)
    return multiclass_confusion_matrix(p, t, num_classes).numpy()
