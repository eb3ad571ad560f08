"""Decode batches of encoded images with the DALI pipeline of `model_repository/image_decode`.

On a CPU a large JPEG takes another way: Pillow decodes it at 1/2, 1/4 or 1/8 of its size where the contract
allows that, in a fraction of the time.

One bad image never costs its neighbours their answer: what is not whole is refused before a decoder sees a
byte, and when a batch still fails, the images that may have caused it are decoded apart.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from fruitstand.contract import Preprocessing
from fruitstand.errors import ImageRejected
from fruitstand.images.reference_decode import decode_inspected, is_reduced
from fruitstand.images.structure import Inspected, inspect_image
from fruitstand.images.synthetic import canary_image
from serving.engine.pipeline import Pipeline

_Results = list[np.ndarray | ImageRejected | None]


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
            pipeline_file: a `dali.py` with one function under `@autoserialize`, or a serialised pipeline.
            input_name: of the pipeline's external source.
            max_batch_size: images in one call of `decode`.
            num_threads: decode threads; None keeps the pipeline's own.
            device_id: of the GPU that decodes; None decodes on the CPU.

        Raises:
            ArtefactError: the file holds no or several pipelines.
            ServerError: the pipeline cannot be built.
        """
        self._input_name = input_name
        self.pipeline = Pipeline(
            pipeline_file, max_batch_size=max_batch_size, num_threads=num_threads, device_id=device_id
        )
        # A pipeline without a contract gets the default's limits and no other decode than its own.
        self._contract = self.pipeline.preprocessing or Preprocessing(reduced_decode=0)
        if device_id is not None:
            self._contract = replace(self._contract, reduced_decode=0)
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="decode-reduced")
        self._canary = np.frombuffer(canary_image(), np.uint8)
        self._canary_pixels = self._run([self._canary])[0].copy()

    def decode(self, encoded: Sequence[np.ndarray]) -> list[np.ndarray | ImageRejected]:
        """Decode and resize images.

        Args:
            encoded: one file each as (size_bytes,) uint8; trailing zero bytes do no harm.

        Returns:
            For each either its pixels, (H, W, 3) uint8 RGB, or why it was refused. Pixels are views that
            the next call overwrites.
        """
        results: _Results = [None] * len(encoded)
        pictures, reduced = list(encoded), {}
        for batch in self._affordable_batches(pictures, results, reduced):
            try:
                for index, image in zip(batch, self._run([pictures[index] for index in batch]), strict=True):
                    results[index] = image
            except Exception:  # DALI raises RuntimeError, MemoryError and whatever its decoders raise
                self._recover()
                self._decode_apart(pictures, batch, results)
        for index, image in reduced.items():
            results[index] = image.result()
        return results

    def _affordable_batches(
        self, pictures: list[np.ndarray], results: _Results, reduced: dict[int, Future]
    ) -> Iterator[list[int]]:
        """Positions of the images that are whole and go to DALI, a batch at most `max_pixels` large in all.

        Each of these files in `pictures` gives way to what a decoder may see of it. The decode of the other
        images that are whole begins, and lands in `reduced`.
        """
        batch: list[int] = []
        num_pixels = 0
        for index, image in enumerate(pictures):
            try:
                inspected = inspect_image(image.data, self._contract)
            except ImageRejected as exc:
                results[index] = exc
                continue
            if is_reduced(inspected.header, self._contract):
                reduced[index] = self._threads.submit(self._decode_reduced, inspected)
                continue
            pictures[index] = np.frombuffer(inspected.content, np.uint8)
            cost = inspected.header.width * inspected.header.height
            if batch and num_pixels + cost > self._contract.max_pixels:
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

    def _decode_reduced(self, inspected: Inspected) -> np.ndarray | ImageRejected:
        try:
            return decode_inspected(inspected, self._contract, reduced=True)
        except ImageRejected as exc:
            return exc

    def _decode_apart(self, pictures: list[np.ndarray], batch: list[int], results: _Results) -> None:
        """A batch that failed: a JPEG that is whole hardly ever does, so JPEGs first go together."""
        jpegs = [index for index in batch if pictures[index][0] == 0xFF]
        others = [index for index in batch if pictures[index][0] != 0xFF]
        groups = [jpegs, *([index] for index in others)] if others else [[index] for index in jpegs]
        for group in filter(None, groups):
            try:
                pixels = self._run([pictures[index] for index in group]).copy()
            except Exception:  # as above
                self._recover()
                if len(group) > 1:
                    self._decode_apart(pictures, group, results)
                else:
                    results[group[0]] = ImageRejected(
                        "damaged or truncated: the image cannot be decoded to its end"
                    )
                continue
            for index, image in zip(group, pixels, strict=True):
                results[index] = image

    def _run(self, encoded: list[np.ndarray]) -> np.ndarray:
        """(N, H, W, 3) uint8, a view of the pipeline's own memory."""
        (pixels,) = self.pipeline.run({self._input_name: encoded})
        return pixels

    def _recover(self) -> None:
        """After an error DALI calls the pipeline invalid, yet it goes on, in a tenth of a new one's time.

        It is taken at its work: an image whose pixels are known has to come out of it unchanged.
        """
        try:
            if np.array_equal(self._run([self._canary])[0], self._canary_pixels):
                return
        except Exception:  # as above
            pass
        self.pipeline.rebuild()
