"""How fast one file is beside another on this machine: they take turns, so that a busy one slows both."""

import statistics
import time
from dataclasses import dataclass

import numpy as np
import onnxruntime

from fruitstand.model.session import run_batches

BATCH = 32
ROUNDS = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Of one session beside another."""

    images_per_s: float
    """Median over the rounds."""
    ratio: float
    """The other's time as a multiple of this one's, median over the rounds: above 1 this one is faster."""
    slowest: float
    """The smallest of these ratios."""
    fastest: float
    """The greatest."""


def compare(
    new: onnxruntime.InferenceSession, old: onnxruntime.InferenceSession, pixels_nhwc_u8: np.ndarray
) -> Speed:
    """Time two sessions in turns.

    Args:
        new: whose speed is asked for.
        old: what it is held against.
        pixels_nhwc_u8: (N, H, W, 3) uint8 images; repeated when fewer than a batch.
    """
    batch = np.resize(pixels_nhwc_u8, (BATCH, *pixels_nhwc_u8.shape[1:]))
    for session in (new, old):
        run_batches(session, batch)
    rounds = [(_seconds(new, batch), _seconds(old, batch)) for _ in range(ROUNDS)]
    ratios = [old_s / new_s for new_s, old_s in rounds]
    return Speed(
        images_per_s=BATCH / statistics.median(new_s for new_s, _ in rounds),
        ratio=statistics.median(ratios),
        slowest=min(ratios),
        fastest=max(ratios),
    )


def _seconds(session: onnxruntime.InferenceSession, batch: np.ndarray) -> float:
    started = time.perf_counter()
    run_batches(session, batch)
    return time.perf_counter() - started
