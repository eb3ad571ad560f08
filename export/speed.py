"""How much slower one ONNX file is than another: interleaved, so that a busy machine slows both."""

import time
from collections.abc import Callable

import numpy as np

from fruitstand.contract import PIXELS, PROBABILITIES

BATCH_SIZE = 32
NUM_ROUNDS = 9
MIN_ROUND_S = 0.2
"""Of each file in each round; shorter ones measure the clock."""


def slowdown(candidate: Callable[[], object], replaced: Callable[[], object]) -> tuple[float, float]:
    """Time two functions in turns.

    Args:
        candidate: runs one batch; so does the other.
        replaced: what it is compared with.

    Returns:
        The median of candidate time / replaced time over the rounds, and half their interquartile range.
    """
    repeats = max(_repeats(candidate), _repeats(replaced))
    ratios = []
    for number in range(NUM_ROUNDS):
        # Who goes first changes, or a drift of the clock speed would favour one.
        order = (candidate, replaced) if number % 2 else (replaced, candidate)
        seconds = {function: _time(function, repeats) for function in order}
        ratios.append(seconds[candidate] / seconds[replaced])
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return float(median), float(high - low) / 2


def batch_runner(session, preprocessing) -> Callable[[], object]:
    """One batch of noise through an ONNX Runtime session."""
    shape = (BATCH_SIZE, *preprocessing.input_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return lambda: session.run([PROBABILITIES], {PIXELS: pixels})


def _repeats(function: Callable[[], object]) -> int:
    """How often to call for a round of `MIN_ROUND_S`; the first call warms up."""
    function()
    return max(1, round(MIN_ROUND_S / _time(function, 1)))


def _time(function: Callable[[], object], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        function()
    return time.perf_counter() - started
