"""How fast one file is beside another on this machine, for reports; no gate reads it."""

import statistics
import time

import numpy as np
import onnxruntime

from fruitstand.contract import PIXELS, PROBABILITIES

BATCH = 32
ROUNDS = 7


def images_per_s(
    sessions: dict[str, onnxruntime.InferenceSession], pixels_nhwc_u8: np.ndarray
) -> dict[str, float]:
    """The median rate of each session; they take turns, so that a busy machine slows all of them.

    Args:
        sessions: by name.
        pixels_nhwc_u8: (N, H, W, 3) uint8 images; repeated when fewer than a batch.
    """
    feed = {PIXELS: np.resize(pixels_nhwc_u8, (BATCH, *pixels_nhwc_u8.shape[1:]))}
    for session in sessions.values():
        session.run([PROBABILITIES], feed)
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run([PROBABILITIES], feed)
            seconds[name].append(time.perf_counter() - started)
    return {name: BATCH / statistics.median(values) for name, values in seconds.items()}
