"""One session for each of a few batch sizes, for engines that plan anew whenever the batch size changes.

Since 1.20, ONNX Runtime's CUDA provider keeps one cuDNN plan per convolution, for the last shape. Triton's
batches vary in size, so nearly every batch would be planned first, which takes many times as long as
computing it.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnxruntime

SMALL_SIZES = (1, 8, 32)
"""Batch sizes beside the largest one; a batch is padded to the next size."""


def plans_each_size(session: onnxruntime.InferenceSession) -> bool:
    """Whether the session's engine plans anew for each batch size."""
    return bool(session.get_providers()[0] == "CUDAExecutionProvider")


class SizedSession:
    """Replaces an `InferenceSession` for batches up to a largest size."""

    def __init__(
        self,
        first: onnxruntime.InferenceSession,
        open_another: Callable[[], onnxruntime.InferenceSession],
        max_batch_size: int,
    ) -> None:
        sizes = [*(size for size in SMALL_SIZES if size < max_batch_size), max_batch_size]
        self._sessions = {size: first if size == sizes[0] else open_another() for size in sizes}
        self._filled: dict[tuple[str, int], np.ndarray] = {}

    def warm_up(self, outputs: Sequence[str], one_image: Mapping[str, np.ndarray]) -> None:
        """Let each session plan for its size."""
        for size in self._sessions:
            self.run(outputs, {name: np.repeat(feed, size, axis=0) for name, feed in one_image.items()})

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run a batch and return its outputs in order; axis 0 of each array is the batch.

        Raises:
            ValueError: more images than the largest size.
        """
        num_images = len(next(iter(feeds.values())))
        size = next((size for size in self._sessions if size >= num_images), None)
        if size is None:
            raise ValueError(f"{num_images} images in a batch, allowed {max(self._sessions)}")
        filled = {name: self._fill(name, feed, size) for name, feed in feeds.items()}
        return [array[:num_images] for array in self._sessions[size].run(outputs, filled)]

    def _fill(self, name: str, batch: np.ndarray, size: int) -> np.ndarray:
        """Copy the batch to the start of a reused array; the rows after it are padding."""
        if len(batch) == size:
            return batch
        filled = self._filled.get((name, size))
        if filled is None or filled.shape[1:] != batch.shape[1:]:
            filled = self._filled[name, size] = np.zeros((size, *batch.shape[1:]), batch.dtype)
        filled[: len(batch)] = batch
        return filled
