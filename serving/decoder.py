"""Decode batches of encoded images with the DALI pipeline of `model_repository/image_decode`.

One bad image never costs its neighbours their answer: headers are checked before DALI sees a byte, and when
a batch still fails, every image of it is decoded alone.
"""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fruitstand.contract import Preprocessing
from fruitstand.errors import ImageRejected, ServerError
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
            ServerError: the file holds no or several pipelines.
        """
        self._input_name = input_name
        self._limits = Preprocessing()
        self._options = {"batch_size": max_batch_size, "device_id": device_id}
        if num_threads is not None:
            self._options["num_threads"] = num_threads
        if device_id is not None:
            os.environ["FRUITSTAND_DECODE_DEVICE"] = "gpu"
        self._define = _pipeline_function(pipeline_file)
        self._build()

    def decode(self, encoded: Sequence[np.ndarray]) -> list[np.ndarray | ImageRejected]:
        """Decode and resize images.

        Args:
            encoded: one file each as (size_bytes,) uint8; trailing zero bytes do no harm.

        Returns:
            For each either its pixels, (H, W, 3) uint8 RGB, or why it was refused. Pixels are views that
            the next call overwrites.
        """
        results: list[np.ndarray | ImageRejected] = [
            _header_verdict(image, self._limits) for image in encoded
        ]
        sound = [index for index, verdict in enumerate(results) if verdict is None]
        if not sound:
            return results
        try:
            pixels = self._run([encoded[index] for index in sound])
        except RuntimeError:
            self._build()
            if len(sound) == 1:
                results[sound[0]] = _damaged()
            else:
                for index in sound:
                    results[index] = self._decode_alone(encoded[index])
            return results
        for index, image in zip(sound, pixels, strict=True):
            results[index] = image
        return results

    def _decode_alone(self, encoded: np.ndarray) -> np.ndarray | ImageRejected:
        try:
            return self._run([encoded])[0].copy()
        except RuntimeError:
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


def _header_verdict(encoded: np.ndarray, limits: Preprocessing) -> ImageRejected | None:
    try:
        read_header(encoded.data, limits)
    except ImageRejected as exc:
        return exc
    return None


def _damaged() -> ImageRejected:
    return ImageRejected("damaged or truncated: the image cannot be decoded to its end")


def _pipeline_function(path: Path):
    spec = importlib.util.spec_from_file_location("fruitstand_dali_pipeline", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ServerError(f"{path.name}: no DALI pipeline file in the model's version folder")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    marked = [value for value in vars(module).values() if getattr(value, "_is_autoserialize", False)]
    if len(marked) != 1:
        raise ServerError(
            f"{path.name}: has {len(marked)} functions under @autoserialize, expected exactly one"
        )
    return marked[0]
