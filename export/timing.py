"""How fast one file is beside another on this machine: they take turns, so that a busy one slows both."""

import statistics
import time

import numpy as np
import onnxruntime

from fruitstand.contract import PIXELS, PROBABILITIES

BATCH = 32
ROUNDS = 7


Sessions = dict[str, onnxruntime.InferenceSession]


def images_per_s(sessions: Sessions, pixels_nhwc_u8: np.ndarray) -> dict[str, float]:
    """The median rate of each session.

    Args:
        sessions: by name.
        pixels_nhwc_u8: (N, H, W, 3) uint8 images; repeated when fewer than a batch.
    """
    seconds = _seconds(sessions, pixels_nhwc_u8)
    return {name: BATCH / statistics.median(values) for name, values in seconds.items()}


def slowdown(
    new: onnxruntime.InferenceSession, old: onnxruntime.InferenceSession, pixels_nhwc_u8: np.ndarray
) -> float:
    """The median over the rounds of the new session's time as a multiple of the old one's."""
    seconds = _seconds({"new": new, "old": old}, pixels_nhwc_u8)
    return statistics.median(a / b for a, b in zip(seconds["new"], seconds["old"], strict=True))


def _seconds(sessions: Sessions, pixels_nhwc_u8: np.ndarray) -> dict[str, list[float]]:
    """The time of one batch in each round."""
    feed = {PIXELS: np.resize(pixels_nhwc_u8, (BATCH, *pixels_nhwc_u8.shape[1:]))}
    for session in sessions.values():
        session.run([PROBABILITIES], feed)
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run([PROBABILITIES], feed)
            seconds[name].append(time.perf_counter() - started)
    return seconds
