"""How far a window of samples is from a reference, and from where on it has drifted.

The measures are looked at together, so their thresholds are set together: of the clean windows no more than
the wanted share may pass any of them. A table's value for one test would give a false alarm for each.
"""

from dataclasses import replace

import numpy as np

from fruitstand.errors import UsageError
from fruitstand.samples import IMAGE_STATISTICS, Samples

CLASS_MIX = "psi_class_mix"
FEATURES = "mmd_features"
MAX_KERNEL_SAMPLES = 200
"""Of each side in the MMD: its cost grows with the square."""
NUM_COMPONENTS = 32


def measure(window: Samples, reference: Samples, *, num_classes: int) -> dict[str, float]:
    """All measures of a window.

    Args:
        window: n samples.
        reference: m samples, with features where the window has them.
        num_classes: of the model.

    Returns:
        `psi_class_mix`; `ks_*` of confidence, entropy and each image statistic, 0 to 1; `mmd_features` where
        both sides have features of one width.
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
    """Population stability index of two sets of class indices; half an image is added to each class.

    Source:
        Siddiqi, Credit Risk Scorecards (2006): sum of (p - q) ln(p / q).
    """
    p, q = (np.bincount(one, minlength=num_classes) + 0.5 for one in (window, reference))
    p, q = p / p.sum(), q / q.sum()
    return float(((p - q) * np.log(p / q)).sum())


def ks(window: np.ndarray, reference: np.ndarray) -> float:
    """Two-sample Kolmogorov-Smirnov statistic: the largest distance of the two distribution functions."""
    window, reference = np.sort(window), np.sort(reference)
    every = np.concatenate([window, reference])
    below_window = np.searchsorted(window, every, side="right") / len(window)
    below_reference = np.searchsorted(reference, every, side="right") / len(reference)
    return float(np.abs(below_window - below_reference).max())


def mmd(window: np.ndarray, reference: np.ndarray) -> float:
    """Squared maximum mean discrepancy with a Gaussian kernel, of at most `MAX_KERNEL_SAMPLES` rows a side.

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
    """(D, C) the first principal components of (N, D) features; C is D where `NUM_COMPONENTS` is more."""
    width = features.shape[1]
    if width <= NUM_COMPONENTS:
        return np.eye(width, dtype=features.dtype)
    _, _, axes = np.linalg.svd(_thinned(features - features.mean(axis=0)), full_matrices=False)
    return np.ascontiguousarray(axes[:NUM_COMPONENTS].T)


def _thinned(rows: np.ndarray) -> np.ndarray:
    return rows[:: -(-len(rows) // MAX_KERNEL_SAMPLES)]


FALSE_ALARMS = 0.02
"""Of clean windows; below the 5 % that are allowed, because the reference is a sample as well."""
NUM_CLEAN = 1000
MIN_SAMPLES = 50
"""Of a window, and of a reference: below it nothing but an accident is found."""


def thresholds(reference: Samples, window_size: int, *, num_classes: int, seed: int = 0) -> dict[str, float]:
    """The value of each measure above which a window of that size has drifted.

    Args:
        reference: clean samples.
        window_size: of the windows to come.
        num_classes: of the model.
        seed: of the draws.

    Raises:
        UsageError: too few samples.

    Source:
        Westfall and Young, Resampling-Based Multiple Testing (1993): the smallest p of all tests is compared
        with its own distribution. Efron: windows are drawn with replacement, and so is the reference, whose
        chance is part of every comparison.
    """
    for what, size in (("reference", len(reference)), ("window", window_size)):
        if size < MIN_SAMPLES:
            raise UsageError(f"the {what} holds {size} samples, at least {MIN_SAMPLES} are needed")
    # Once and not for each window: nothing else here takes as long.
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
