"""Load batches that DALI decodes anew in each epoch, on a GPU if there is one.

This is for data sets too large for the pixel cache. The operators are those of the served pipeline, so a JPEG
becomes the same pixels in training and in serving.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from fruitstand.contract import Preprocessing
from fruitstand.errors import DataError, UsageError
from fruitstand.images.dali_operation import decode_pixels
from fruitstand.manifest import PreparedData

AHEAD = 2
"""Batches that DALI prefetches while one is in use."""


class DaliLoader:
    """Yields (N, H, W, 3) uint8 pixels and (N,) int64 targets, on `device`."""

    def __init__(
        self,
        data: PreparedData,
        split: str,
        preprocessing: Preprocessing,
        batches: Iterable[list[int]],
        *,
        batch_size: int,
        device: torch.device,
        num_threads: int,
    ) -> None:
        """Prepare paths and targets; each epoch builds its own pipeline.

        Args:
            data: the prepared folder.
            split: train, val or test.
            preprocessing: the contract; the geometry comes from it.
            batches: lists of positions in the split, iterated again for each epoch.
            batch_size: length of the longest of these lists.
            device: where the batches go; with a GPU, DALI decodes on it (`mixed`).
            num_threads: CPU threads that decode, or that feed the GPU.
        """
        index = data.label_index()
        rows = data.split(split)
        self._paths = [data.directory / row.path for row in rows]
        self._targets = torch.tensor([index[row.label] for row in rows])
        self._batches, self._device = batches, device
        self._build = functools.partial(
            _pipeline,
            preprocessing=preprocessing,
            batch_size=batch_size,
            device=device,
            num_threads=num_threads,
        )

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the batches of one epoch.

        Raises:
            DataError: an image cannot be decoded.
            UsageError: DALI is not installed.
        """
        read: deque[list[int]] = deque()

        def encoded() -> Iterator[list[np.ndarray]]:
            for positions in self._batches:
                read.append(positions)
                yield [np.fromfile(self._paths[position], np.uint8) for position in positions]

        # Reusing the pipeline of an unfinished epoch would yield the batches it prefetched.
        pipeline = self._build(encoded)
        while True:
            try:
                (output,) = pipeline.run()
            except StopIteration:
                return
            except RuntimeError as exc:
                raise DataError(
                    f"DALI cannot decode {self._paths[read[0][0]]} or another image of its batch;"
                    " find it with 'fruitstand data check'"
                ) from exc
            positions = read.popleft()
            # DALI reuses this memory for the next batch, so the copy must finish before the next run().
            pixels = torch.from_dlpack(output.as_tensor()).clone()
            if pixels.is_cuda:
                torch.cuda.current_stream(pixels.device).synchronize()
            yield pixels.to(self._device), self._targets[positions].to(self._device)


def _pipeline(
    source: Callable[[], Iterator[list[np.ndarray]]],
    *,
    preprocessing: Preprocessing,
    batch_size: int,
    device: torch.device,
    num_threads: int,
):
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ModuleNotFoundError as exc:
        raise UsageError(
            "loader=dali: DALI is not installed; pip install nvidia-dali-cuda130, or --set loader=cache"
        ) from exc
    gpu = device.type == "cuda"

    @pipeline_def(
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=device.index or 0 if gpu else None,
        prefetch_queue_depth=AHEAD + 1,
    )
    def decode():
        encoded = fn.external_source(source=source, cycle="raise", dtype=types.UINT8, ndim=1)
        return decode_pixels(encoded, preprocessing.to_dict(), on_gpu=gpu)

    pipeline = decode()
    pipeline.build()
    return pipeline
