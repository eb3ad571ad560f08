"""Decode batches of encoded images with the DALI pipeline of `model_repository/image_decode`.

On a CPU, Pillow decodes large JPEGs at 1/2, 1/4 or 1/8 of their size if the contract allows it, in a fraction
of the time.

A bad image does not affect its neighbours: incomplete files are refused before they reach a decoder, and if a
batch still fails, the images that may have caused the failure are decoded separately.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from fruitstand.contract import Preprocessing
from fruitstand.errors import ArtefactError, ImageRejected, ServerError
from fruitstand.images.dali_pipeline import load_pipeline_definition
from fruitstand.images.formats import jpeg
from fruitstand.images.reference_decode import decode_inspected, is_reduced
from fruitstand.images.structure import Inspected, inspect_image
from fruitstand.images.synthetic import canary_image

_Results = list[np.ndarray | ImageRejected | None]


class Decoder:
    """A built DALI pipeline for encoded images; not thread-safe."""

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
            input_name: name of the pipeline's external source.
            max_batch_size: images in one call of `decode`.
            num_threads: decode threads; None keeps the pipeline's own number.
            device_id: GPU that decodes; None decodes on the CPU.

        Raises:
            ArtefactError: the file does not hold exactly one pipeline.
            ServerError: the pipeline cannot be built.
        """
        self._input_name, self._file_name = input_name, pipeline_file.name
        self._options = {"batch_size": max_batch_size, "device_id": device_id}
        if num_threads is not None:
            self._options["num_threads"] = num_threads
        if device_id is not None:
            os.environ["FRUITSTAND_DECODE_DEVICE"] = "gpu"
        definition = load_pipeline_definition(pipeline_file)
        self._define = definition.define
        self._rebuild()
        # A pipeline without a contract gets the default limits, and no reduced decode.
        self.contract = definition.preprocessing or Preprocessing(reduced_decode=0)
        if device_id is not None:
            self.contract = replace(self.contract, reduced_decode=0)
        self._progressive = threading.Lock()
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="decode-reduced")
        self._canary = np.frombuffer(canary_image(), np.uint8)
        self._canary_pixels = self._run([self._canary])[0].copy()

    def decode(self, encoded: Sequence[np.ndarray]) -> list[np.ndarray | ImageRejected]:
        """Decode and resize images.

        Args:
            encoded: one (size_bytes,) uint8 array per file; trailing zero bytes are ignored.

        Returns:
            For each image its pixels, (H, W, 3) uint8 RGB, or why it was refused. Pixels are views that the
            next call overwrites.
        """
        results: _Results = [None] * len(encoded)
        pictures, reduced = list(encoded), {}
        for batch in self._affordable_batches(pictures, results, reduced):
            try:
                for index, image in zip(batch, self._run([pictures[index] for index in batch]), strict=True):
                    results[index] = image
            except Exception:  # RuntimeError, MemoryError, and anything that DALI's decoders raise
                self._recover()
                self._decode_apart(pictures, batch, results)
        for index, image in reduced.items():
            results[index] = image.result()
        return results

    def _affordable_batches(
        self, pictures: list[np.ndarray], results: _Results, reduced: dict[int, Future]
    ) -> Iterator[list[int]]:
        """Yield the positions of complete images for DALI, in batches of at most `max_pixels` in total.

        Replaces these files in `pictures` by the bytes that a decoder may see. Starts the reduced decode of
        the other complete images, into `reduced`.
        """
        batch: list[int] = []
        num_pixels = 0
        for index, image in enumerate(pictures):
            try:
                inspected = inspect_image(image.data, self.contract)
            except ImageRejected as exc:
                results[index] = exc
                continue
            if is_reduced(inspected.header, self.contract):
                reduced[index] = self._threads.submit(self._decode_reduced, inspected)
                continue
            pictures[index] = np.frombuffer(inspected.content, np.uint8)
            cost = inspected.header.width * inspected.header.height
            if batch and num_pixels + cost > self.contract.max_pixels:
                yield batch
                # The next run overwrites the pipeline's memory, which holds these results.
                for done in batch:
                    if isinstance(results[done], np.ndarray):
                        results[done] = results[done].copy()
                batch, num_pixels = [], 0
            batch.append(index)
            num_pixels += cost
        if batch:
            yield batch

    def _decode_reduced(self, inspected: Inspected) -> np.ndarray | ImageRejected:
        # A progressive JPEG needs memory for its full size at any scale: one at a time stays below
        # `max_pixels`.
        one_at_a_time = jpeg.is_progressive(memoryview(inspected.content))
        try:
            with self._progressive if one_at_a_time else nullcontext():
                return decode_inspected(inspected, self.contract, reduced=True)
        except ImageRejected as exc:
            return exc

    def _decode_apart(self, pictures: list[np.ndarray], batch: list[int], results: _Results) -> None:
        """Decode a failed batch in groups: JPEGs together first, because complete ones hardly ever fail."""
        jpegs = [index for index in batch if pictures[index][0] == 0xFF]
        others = [index for index in batch if pictures[index][0] != 0xFF]
        groups = [jpegs, *([index] for index in others)] if others else [[index] for index in jpegs]
        for group in filter(None, groups):
            try:
                pixels = self._run([pictures[index] for index in group]).copy()
            except Exception:  # see decode
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
        """Run DALI; returns (N, H, W, 3) uint8, a view of the pipeline's memory."""
        self._pipeline.feed_input(self._input_name, encoded)
        (pixels,) = self._pipeline.run()
        return np.asarray(pixels.as_cpu().as_tensor())

    def _rebuild(self) -> None:
        """Replace the pipeline by a new one."""
        try:
            self._pipeline = self._define(**self._options)
            self._pipeline.build()
        except ArtefactError:
            raise
        except Exception as exc:  # DALI raises RuntimeError, ValueError and TypeError here
            reason = str(exc).strip().splitlines()[-1]
            raise ServerError(f"{self._file_name}: the pipeline cannot be built: {reason}") from exc

    def _recover(self) -> None:
        """Reuse the pipeline after an error if it still works, in a tenth of the time of a rebuild.

        DALI declares a pipeline invalid after an error. It is kept if it decodes the canary image to the same
        pixels as before.
        """
        try:
            if np.array_equal(self._run([self._canary])[0], self._canary_pixels):
                return
        except Exception:  # see decode
            pass
        self._rebuild()
