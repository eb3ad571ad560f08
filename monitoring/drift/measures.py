"""Measure the distance of a window of samples from a reference, and set thresholds for drift.

An alarm is raised if any measure passes its threshold, so the thresholds are set together: the share of clean
windows with an alarm must not exceed the wanted rate. Textbook values for single tests would alarm more
often.
"""

from dataclasses import replace

import numpy as np

from fruitstand.errors import UsageError
from fruitstand.sampling.samples import IMAGE_STATISTICS, Samples

CLASS_MIX = "psi_class_mix"
FEATURES = "mmd_features"
MAX_KERNEL_SAMPLES = 200
"""Largest number of samples on each side of the MMD, whose cost grows quadratically."""
NUM_COMPONENTS = 32


def measure(window: Samples, reference: Samples, *, num_classes: int) -> dict[str, float]:
    """Compute all measures of a window.

    Returns:
        `psi_class_mix`; `ks_*` of confidence, entropy and each image statistic, 0 to 1; `mmd_features` if
        both sides have features of equal width.
    """
    values = {CLASS_MIX: psi(window.predicted, reference.predicted, num_classes)}
    values["ks_confidence"] = ks(window.confidence, reference.confidence)
    values["ks_entropy"] = ks(window.entropy, reference.entropy)
    for column, name in enumerate(IMAGE_STATISTICS):
        values[f"ks_{name}"] = ks(window.statistics[:, column], reference.statistics[:, column])
    width = reference.features.shape[1]
    if width and window.features.shape[1] == width:
        axes = principal_axes(reference.features)
        values[FEATURES] = mmd(window.features @ axes, reference.features @ axes)
    return values


def psi(window: np.ndarray, reference: np.ndarray, num_classes: int) -> float:
    """Population stability index of two sets of class indices, with half an image added to each class.

    Source:
        Siddiqi, Credit Risk Scorecards (2006): sum of (p - q) ln(p / q).
    """
    p, q = (np.bincount(one, minlength=num_classes) + 0.5 for one in (window, reference))
    p, q = p / p.sum(), q / q.sum()
    return float(((p - q) * np.log(p / q)).sum())


def ks(window: np.ndarray, reference: np.ndarray) -> float:
    """Two-sample Kolmogorov-Smirnov statistic: the largest difference of the distribution functions."""
    window, reference = np.sort(window), np.sort(reference)
    every = np.concatenate([window, reference])
    below_window = np.searchsorted(window, every, side="right") / len(window)
    below_reference = np.searchsorted(reference, every, side="right") / len(reference)
    return float(np.abs(below_window - below_reference).max())


def mmd(window: np.ndarray, reference: np.ndarray) -> float:
    """Squared maximum mean discrepancy with a Gaussian kernel, on at most `MAX_KERNEL_SAMPLES` rows per side.

    Source:
        Gretton et al., A Kernel Two-Sample Test (2012), unbiased estimate; bandwidth by the median distance.
    """
    x, y = _thinned(window), _thinned(reference)
    every = np.concatenate([x, y])
    lengths = (every**2).sum(axis=1)
    squared = np.maximum(lengths[:, None] + lengths[None] - 2 * every @ every.T, 0)
    kernel = np.exp(-squared / max(float(np.median(squared)), 1e-12))
    n, m = len(x), len(y)
    within_x = (kernel[:n, :n].sum() - n) / (n * (n - 1))
    within_y = (kernel[n:, n:].sum() - m) / (m * (m - 1))
    return float(within_x + within_y - 2 * kernel[:n, n:].mean())


def principal_axes(features: np.ndarray) -> np.ndarray:
    """The first C principal components of (N, D) features, (D, C); C is at most `NUM_COMPONENTS`."""
    width = features.shape[1]
    if width <= NUM_COMPONENTS:
        return np.eye(width, dtype=features.dtype)
    _, _, axes = np.linalg.svd(_thinned(features - features.mean(axis=0)), full_matrices=False)
    return np.ascontiguousarray(axes[:NUM_COMPONENTS].T)


def _thinned(rows: np.ndarray) -> np.ndarray:
    return rows[:: -(-len(rows) // MAX_KERNEL_SAMPLES)]


FALSE_ALARMS = 0.02
"""Target share of clean windows with an alarm; below the allowed 5 %, as the reference is a sample too."""
NUM_CLEAN = 1000
"""Clean windows drawn to set the thresholds."""
MIN_SAMPLES = 50
"""Smallest window and smallest reference; with fewer samples the measures are mostly noise."""


def thresholds(reference: Samples, window_size: int, *, num_classes: int, seed: int = 0) -> dict[str, float]:
    """Compute the value of each measure above which a window has drifted.

    Raises:
        UsageError: too few samples.

    Source:
        Westfall and Young, Resampling-Based Multiple Testing (1993): the smallest p-value of all tests is
        compared with its own distribution. Efron's bootstrap: windows are drawn with replacement, and so is
        the reference, because it is a random sample too.
    """
    for what, size in (("reference", len(reference)), ("window", window_size)):
        if size < MIN_SAMPLES:
            raise UsageError(f"the {what} holds {size} samples, at least {MIN_SAMPLES} are needed")
    # Project once instead of for each window: this is the most expensive step.
    reference = replace(reference, features=reference.features @ principal_axes(reference.features))
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(NUM_CLEAN):
        window = reference.rows(draw.integers(len(reference), size=window_size))
        other = reference.rows(draw.integers(len(reference), size=len(reference)))
        rows.append(measure(window, other, num_classes=num_classes))
    names = list(rows[0])
    values = np.array([[row[name] for name in names] for row in rows])
    larger_or_equal = np.array([(values >= row).mean(axis=0) for row in values])
    level = np.quantile(larger_or_equal.min(axis=1), FALSE_ALARMS)
    limits = np.quantile(values, 1 - level, axis=0, method="higher")
    return {name: float(limit) for name, limit in zip(names, limits, strict=True)}
