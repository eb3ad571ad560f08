"""Divide a batch among threads that do not wait for each other.

Threads that share each layer of a batch synchronise after every layer, and on a busy machine all of them wait
for the one that was preempted. Here each thread computes whole images: one part of the batch, then the next.
"""

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime

MIN_PART, MAX_PART = 8, 16
"""Images in a part. Smaller parts cost more per image than they save; larger parts leave threads idle at the
end. See `docs/decisions/server.md`, "Threads that do not wait for each other"."""


class DividedSession:
    """Replaces an `InferenceSession`: divides each batch among threads."""

    def __init__(
        self, whole: onnxruntime.InferenceSession, parts: onnxruntime.InferenceSession, num_threads: int
    ) -> None:
        self._whole, self._parts, self._num_threads = whole, parts, num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="part")

    def warm_up(self, outputs: Sequence[str], one_image: Mapping[str, np.ndarray]) -> None:
        """Run every size that is used once, because engines compile for each size on first use."""
        for session, sizes in ((self._whole, range(1, MIN_PART)), (self._parts, (MIN_PART, MAX_PART))):
            for size in sizes:
                feeds = {name: np.repeat(feed, size, axis=0) for name, feed in one_image.items()}
                session.run(outputs, feeds)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run a batch and return its outputs in order; axis 0 of each array is the batch."""
        parts = divide(len(next(iter(feeds.values()))), self._num_threads)
        if len(parts) == 1:
            return list(self._whole.run(outputs, feeds))
        run = self._parts.run
        results = self._pool.map(
            lambda part: run(outputs, {name: feed[part] for name, feed in feeds.items()}), parts
        )
        return [np.concatenate(arrays) for arrays in zip(*results, strict=True)]


def divide(num_images: int, num_threads: int) -> list[slice]:
    """Split a batch into nearly equal parts, the same number for each thread; a small batch stays whole.

    With one thread, a large batch is split too, so that the engine compiles for fewer sizes.
    """
    if num_images < MIN_PART * num_threads:
        return [slice(0, num_images)]
    rounds = -(-num_images // (MAX_PART * num_threads))
    bounds = np.linspace(0, num_images, rounds * num_threads + 1).round().astype(int).tolist()
    return [slice(start, end) for start, end in itertools.pairwise(bounds)]
