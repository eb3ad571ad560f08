"""How far a window of samples is from a reference: one number a measure, larger is farther."""

import numpy as np

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
