import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from training.evaluate.metrics import classification_metrics, reliability_bins


def _random(num: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.full(num_classes, 0.3), num).astype(np.float32), rng.integers(0, num_classes, num)


def test_metrics_are_those_of_a_known_case() -> None:
    """Three of four right, one class never answered."""
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.7, 0.3]], np.float32)
    metrics = classification_metrics(probabilities, np.array([0, 0, 0, 1]), ["a", "b"])
    assert metrics["top1"] == 0.75
    assert metrics["top5"] == 1.0
    assert metrics["macro_f1"] == pytest.approx((6 / 7 + 0) / 2)
    assert metrics["ece"] == pytest.approx((0.1 + 0.2 + 0.4 + 0.7) / 4, abs=1e-6)
    assert metrics["per_class"] == {
        "a": {"recall": 1.0, "precision": 0.75, "f1": pytest.approx(6 / 7), "count": 3},
        "b": {"recall": 0.0, "precision": 0.0, "f1": 0.0, "count": 1},
    }


def test_the_calibration_error_is_the_librarys_and_the_diagrams() -> None:
    """The bins of the plot, weighted by their count, give the number beside it."""
    probabilities, targets = _random(2000, 5)
    bins = reliability_bins(probabilities, targets)
    assert sum(one["count"] for one in bins) == 2000
    ece = sum(one["count"] * abs(one["accuracy"] - one["confidence"]) for one in bins) / 2000
    assert classification_metrics(probabilities, targets, list("abcde"))["ece"] == pytest.approx(ece)
    expected = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(targets), 5, n_bins=15
    )
    assert ece == pytest.approx(float(expected), abs=1e-5)


def test_a_class_without_images_weighs_nothing() -> None:
    """A run may know more classes than the data have; answers with those are wrong all the same."""
    probabilities = np.array([[0.9, 0.1, 0], [0.1, 0.9, 0], [0, 0.1, 0.9]], np.float32)
    metrics = classification_metrics(probabilities, np.array([0, 1, 1]), ["a", "b", "c"])
    assert metrics["top1"] == pytest.approx(2 / 3)
    assert set(metrics["per_class"]) == {"a", "b"}
    assert metrics["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)


def test_a_confidence_of_one_is_in_the_last_bin() -> None:
    """A softmax in float32 gives exactly that."""
    (only,) = reliability_bins(np.array([[1, 0]], np.float32), np.array([0]))
    assert (only["low"], only["high"], only["count"]) == (14 / 15, 1.0, 1)
