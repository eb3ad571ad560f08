"""A session for each of a few batch sizes, for an engine that plans anew whenever the size changes.

Of each convolution ONNX Runtime's CUDA provider (since 1.20) keeps one cuDNN plan, that of the last shape.
Triton's batches have any size, so nearly every one of them would be planned first, which takes many times as
long as computing it.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnxruntime

SMALL_SIZES = (1, 8, 32)
"""Beside the largest batch; a batch is filled up to the next of them."""


class SizedSession:
    """Computes as an `InferenceSession` does, batches up to a largest size."""

    def __init__(self, open_session: Callable[[], onnxruntime.InferenceSession], max_batch_size: int) -> None:
        """Open the sessions.

        Args:
            open_session: opens one more session of the same model.
            max_batch_size: images.
        """
        sizes = [*(size for size in SMALL_SIZES if size < max_batch_size), max_batch_size]
        self._sessions = {size: open_session() for size in sizes}

    def warm_up(self, outputs: Sequence[str], one_image: Mapping[str, np.ndarray]) -> None:
        """Let each session plan for its size.

        Args:
            outputs: names.
            one_image: the inputs of a batch of one.
        """
        for size in self._sessions:
            self.run(outputs, {name: np.repeat(feed, size, axis=0) for name, feed in one_image.items()})

    def run(
        self,
        outputs: Sequence[str],
        feeds: Mapping[str, np.ndarray],
        options: onnxruntime.RunOptions | None = None,
    ) -> list[np.ndarray]:
        """The outputs by order; axis 0 of each array counts images."""
        num_images = len(next(iter(feeds.values())))
        size = next(size for size in self._sessions if size >= num_images)
        filled = {name: _filled(feed, size) for name, feed in feeds.items()}
        return [array[:num_images] for array in self._sessions[size].run(outputs, filled, options)]


def _filled(batch: np.ndarray, size: int) -> np.ndarray:
    missing = size - len(batch)
    return np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), batch.dtype)]) if missing else batch
