"""How often windows of known drift are found, and clean ones taken for it."""

from pathlib import Path
from typing import Any

import numpy as np

from fruitstand.errors import ArtefactError, UsageError
from fruitstand.progress import track
from fruitstand.sampling.samples import Samples, join_samples, read_samples
from monitoring.drift.measures import measure, thresholds

NUM_WINDOWS = 200
FAVOURED_SHARE = 0.1
"""Of the images: as many classes are favoured in the shift of the class mix as make up at least this."""
FAVOURED_FACTOR, MAX_FAVOURED = 3.0, 0.9
"""So many times as often those classes then come, and at most in this part of a window."""


def drift_power(
    reference: Path, clean: Path, drifted: list[Path], unseen: Path | None, *, window_size: int
) -> dict[str, Any]:
    """Draw windows and judge each.

    Args:
        reference: samples that the thresholds come from.
        clean: other samples of the same kind.
        drifted: samples of images that were changed, one file a change.
        unseen: samples of classes that the model does not know: a fifth of a window are taken from it.
        window_size: of every window, drawn without replacement.

    Returns:
        For clean windows and every kind of drift the share that was found, and by which measures. Beside
        the files there is the class mix: classes of a tenth of the images come three times as often.

    Raises:
        UsageError: a file holds fewer samples than a window.
        ArtefactError: a file is damaged.
    """
    base, _, labels = read_samples(reference)
    num_classes = len(labels)
    if not num_classes:
        raise ArtefactError(f"{reference}: does not name its classes; make it with 'fruitstand drift record'")
    pools = {path.stem: read_samples(path)[0] for path in drifted}
    good = read_samples(clean)[0]
    for name, pool in {"clean": good, **pools}.items():
        if len(pool) < window_size:
            raise UsageError(f"{name}: {len(pool)} samples, a window of {window_size} needs at least as many")
    draw = np.random.default_rng(0)
    limits = thresholds(base, window_size, num_classes=num_classes)
    weights = _shifted_weights(good, draw)

    def plain(pool: Samples) -> Samples:
        return pool.rows(draw.choice(len(pool), window_size, replace=False))

    windows = {"clean": lambda: plain(good)}
    windows |= {name: (lambda pool=pool: plain(pool)) for name, pool in pools.items()}
    windows["class_mix"] = lambda: good.rows(draw.choice(len(good), window_size, p=weights))
    if unseen is not None:
        strange = read_samples(unseen)[0]
        windows["unseen_class"] = lambda: _mixed(good, strange, window_size, draw)
    result: dict[str, Any] = {}
    for name, make in track(list(windows.items()), total=len(windows), description="drift"):
        values = [measure(make(), base, num_classes=num_classes) for _ in range(NUM_WINDOWS)]
        found = [{key for key, value in one.items() if value > limits[key]} for one in values]
        result[name] = {
            "share_found": float(np.mean([bool(one) for one in found])),
            "by_measure": {key: float(np.mean([key in one for one in found])) for key in limits},
        }
    return {
        "window_size": window_size,
        "num_windows": NUM_WINDOWS,
        "num_reference": len(base),
        "num_clean": len(good),
        "thresholds": limits,
        "kinds": result,
    }


def _shifted_weights(samples: Samples, draw: np.random.Generator) -> np.ndarray:
    classes, counts = np.unique(samples.predicted, return_counts=True)
    order = draw.permutation(len(classes))
    reached = np.cumsum(counts[order]) / len(samples)
    favoured = classes[order[: 1 + int(np.argmax(reached >= FAVOURED_SHARE))]]
    chosen = np.isin(samples.predicted, favoured)
    share = min(FAVOURED_FACTOR * chosen.mean(), MAX_FAVOURED)
    weights = np.where(chosen, share / chosen.sum(), (1 - share) / max((~chosen).sum(), 1))
    return weights / weights.sum()


def _mixed(good: Samples, strange: Samples, size: int, draw: np.random.Generator) -> Samples:
    num_strange = size // 5
    parts = (
        good.rows(draw.choice(len(good), size - num_strange, replace=False)),
        strange.rows(draw.choice(len(strange), num_strange, replace=len(strange) < num_strange)),
    )
    return join_samples(parts)
