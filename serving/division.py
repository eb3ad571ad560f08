"""A batch divided among threads that do not wait for each other.

Threads that share each layer of one batch meet at its end, and where the machine has other work, all of them
wait for the one that was interrupted. So each thread computes whole images: those of a part of the batch, and
the next part when it is done.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime

Open = Callable[[int], onnxruntime.InferenceSession]
"""Opens the session for so many callers at the same time."""
MIN_PART, MAX_PART = 8, 16
"""Images: smaller parts cost more an image than the waiting does; larger ones leave a thread without work at
the end. See `docs/DECISIONS.md`, "Threads that do not wait for each other"."""


class DividedSession:
    """Computes as an `InferenceSession` does."""

    def __init__(self, open_session: Open, num_threads: int) -> None:
        """Open one session for batches too small to be divided, and one for the parts of the others."""
        self.whole, self._num_threads = open_session(1), num_threads
        self._parts = open_session(num_threads) if num_threads > 1 else self.whole
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="part")

    def run(
        self,
        outputs: Sequence[str],
        feeds: Mapping[str, np.ndarray],
        options: onnxruntime.RunOptions | None = None,
    ) -> list[np.ndarray]:
        """The outputs by order; axis 0 of each array counts images."""
        parts = divide(len(next(iter(feeds.values()))), self._num_threads)
        if len(parts) == 1:
            return list(self.whole.run(outputs, feeds, options))
        run = self._parts.run
        results = self._pool.map(
            lambda part: run(outputs, {name: feed[part] for name, feed in feeds.items()}, options), parts
        )
        return [np.concatenate(arrays) for arrays in zip(*results, strict=True)]


def divide(num_images: int, num_threads: int) -> list[slice]:
    """Parts of a batch, nearly equal ones, as many for each thread; one where a division does not pay."""
    if num_threads == 1 or num_images < MIN_PART * num_threads:
        return [slice(0, num_images)]
    rounds = -(-num_images // (MAX_PART * num_threads))
    bounds = np.linspace(0, num_images, rounds * num_threads + 1).round().astype(int).tolist()
    return [slice(start, end) for start, end in itertools.pairwise(bounds)]
