"""Decode batches of encoded images with the DALI pipeline of `model_repository/image_decode`.

One bad image never costs its neighbours their answer: headers are checked before DALI sees a byte, and when
a batch still fails, every image of it is decoded alone.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fruitstand.contract import Preprocessing
from fruitstand.dali_pipeline import load_pipeline_definition
from fruitstand.errors import ImageRejected
from fruitstand.image_header import read_header


class Decoder:
    """A built DALI pipeline; not thread-safe, one per thread."""

    def __init__(
        self,
        pipeline_file: Path,
        *,
        input_name: str,
        max_batch_size: int,
        num_threads: int | None = None,
        device_id: int | None = None,
    ) -> None:
        """Build the pipeline.

        Args:
            pipeline_file: a `dali.py` with one function under `@autoserialize`.
            input_name: of the pipeline's external source.
            max_batch_size: images in one call of `decode`.
            num_threads: decode threads; None keeps the pipeline's own.
            device_id: of the GPU that decodes; None decodes on the processor.

        Raises:
            ArtefactError: the file holds no or several pipelines.
        """
        self._input_name = input_name
        self._limits = Preprocessing()
        self._options = {"batch_size": max_batch_size, "device_id": device_id}
        if num_threads is not None:
            self._options["num_threads"] = num_threads
        if device_id is not None:
            os.environ["FRUITSTAND_DECODE_DEVICE"] = "gpu"
        self._define = load_pipeline_definition(pipeline_file)
        self._build()

    def decode(self, encoded: Sequence[np.ndarray]) -> list[np.ndarray | ImageRejected]:
        """Decode and resize images.

        Args:
            encoded: one file each as (size_bytes,) uint8; trailing zero bytes do no harm.

        Returns:
            For each either its pixels, (H, W, 3) uint8 RGB, or why it was refused. Pixels are views that
            the next call overwrites.
        """
        results: list[np.ndarray | ImageRejected | None] = [None] * len(encoded)
        for batch in self._affordable_batches(encoded, results):
            try:
                for index, image in zip(batch, self._run([encoded[index] for index in batch]), strict=True):
                    results[index] = image
            except Exception:  # DALI raises RuntimeError, MemoryError and whatever its decoders raise
                self._build()
                for index in batch:
                    results[index] = _damaged() if len(batch) == 1 else self._decode_alone(encoded[index])
        return results

    def _affordable_batches(
        self, encoded: Sequence[np.ndarray], results: list[np.ndarray | ImageRejected | None]
    ) -> Iterator[list[int]]:
        """Positions of the images whose header is sound, a batch at most `max_pixels` large in all."""
        batch: list[int] = []
        num_pixels = 0
        for index, image in enumerate(encoded):
            try:
                header = read_header(image.data, self._limits)
            except ImageRejected as exc:
                results[index] = exc
                continue
            cost = header.width * header.height
            if batch and num_pixels + cost > self._limits.max_pixels:
                yield batch
                # The next run overwrites the pipeline's memory that these results lie in.
                for done in batch:
                    if isinstance(results[done], np.ndarray):
                        results[done] = results[done].copy()
                batch, num_pixels = [], 0
            batch.append(index)
            num_pixels += cost
        if batch:
            yield batch

    def _decode_alone(self, encoded: np.ndarray) -> np.ndarray | ImageRejected:
        try:
            return self._run([encoded])[0].copy()
        except Exception:  # as above
            self._build()
            return _damaged()

    def _run(self, encoded: list[np.ndarray]) -> np.ndarray:
        """(N, H, W, 3) uint8, a view of the pipeline's own memory."""
        self._pipeline.feed_input(self._input_name, encoded)
        (output,) = self._pipeline.run()
        return np.asarray(output.as_cpu().as_tensor())

    def _build(self) -> None:
        """Make a fresh pipeline: after an error the old object answers nothing any more."""
        self._pipeline = self._define(**self._options)
        self._pipeline.build()


def _damaged() -> ImageRejected:
    return ImageRejected("damaged or truncated: the image cannot be decoded to its end")
