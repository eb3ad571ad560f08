"""A batch divided among threads that do not wait for each other.

Threads that share each layer of one batch meet at its end, and where the machine has other work, all of them
wait for the one that was interrupted. So each thread computes whole images: those of a part of the batch, and
the next part when it is done.
"""

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime

MIN_PART, MAX_PART = 8, 16
"""Images: smaller parts cost more an image than the waiting does; larger ones leave a thread without work at
the end. See `docs/decisions/server.md`, "Threads that do not wait for each other"."""


class DividedSession:
    """Computes as an `InferenceSession` does."""

    def __init__(
        self, whole: onnxruntime.InferenceSession, parts: onnxruntime.InferenceSession, num_threads: int
    ) -> None:
        """Divide among so many threads.

        Args:
            whole: computes with all of them, for batches too small to be divided.
            parts: the same model for as many callers, one thread each; with one thread the same session.
            num_threads: of both.
        """
        self._whole, self._parts, self._num_threads = whole, parts, num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="part")

    def warm_up(self, outputs: Sequence[str], one_image: Mapping[str, np.ndarray]) -> None:
        """Compute small batches and parts once: an engine compiles for each size when it first meets it.

        Args:
            outputs: names.
            one_image: the inputs of a batch of one.
        """
        for session, sizes in ((self._whole, range(1, MIN_PART)), (self._parts, (MIN_PART, MAX_PART))):
            for size in sizes:
                feeds = {name: np.repeat(feed, size, axis=0) for name, feed in one_image.items()}
                session.run(outputs, feeds)

    def run(
        self,
        outputs: Sequence[str],
        feeds: Mapping[str, np.ndarray],
        options: onnxruntime.RunOptions | None = None,
    ) -> list[np.ndarray]:
        """The outputs by order; axis 0 of each array counts images."""
        parts = divide(len(next(iter(feeds.values()))), self._num_threads)
        if len(parts) == 1:
            return list(self._whole.run(outputs, feeds, options))
        run = self._parts.run
        results = self._pool.map(
            lambda part: run(outputs, {name: feed[part] for name, feed in feeds.items()}, options), parts
        )
        return [np.concatenate(arrays) for arrays in zip(*results, strict=True)]


def divide(num_images: int, num_threads: int) -> list[slice]:
    """Parts of a batch, nearly equal ones, as many for each thread; one where a division does not pay.

    A single thread computes its parts one after the other: an engine meets fewer different sizes.
    """
    if num_images < MIN_PART * num_threads:
        return [slice(0, num_images)]
    rounds = -(-num_images // (MAX_PART * num_threads))
    bounds = np.linspace(0, num_images, rounds * num_threads + 1).round().astype(int).tolist()
    return [slice(start, end) for start, end in itertools.pairwise(bounds)]
