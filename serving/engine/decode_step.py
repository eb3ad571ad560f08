"""The decode step: decode a batch of requests.

Used by `serving/backends/dali/model.py` in a process of Triton's Python backend, and by
`serving/host/models.py` inside the server.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fruitstand.errors import ImageRejected, ServerError
from fruitstand.images.dali_pipeline import PYTHON_FILE, SERIALIZED_FILE
from fruitstand.machine.threads import thread_budget
from serving.engine.decoder import Decoder
from serving.engine.recorder import recorder_from_environment
from serving.engine.settings import checked_parameters


class DecodeStep:
    """One instance of a model with `backend: "dali"`; not thread-safe."""

    def __init__(self, version_directory: Path, config: dict[str, Any], *, device_id: int | None) -> None:
        """Build the pipeline; `config` is the model's configuration, as Triton passes it to a backend.

        Raises:
            ArtefactError: the file does not hold exactly one pipeline.
            ServerError: no file, an unknown key or value, other tensors than encoded files and their pixels,
                or the pipeline cannot be built.
            UsageError: a variable that controls recording has a wrong value.
        """
        parameters = checked_parameters(config, "dali")
        tensors = [
            (one["data_type"], len(one["dims"])) for side in ("input", "output") for one in config[side]
        ]
        if tensors != [("TYPE_UINT8", 1), ("TYPE_UINT8", 3)]:
            raise ServerError(
                f"{config['name']}: its tensors are {tensors}, expected one of encoded files, UINT8 [-1], and"
                " one of their pixels, UINT8 [height, width, 3]"
            )
        self.input, self.output = config["input"][0]["name"], config["output"][0]["name"]
        num_threads = int(parameters.get("num_threads", "-1"))
        self._decoder = Decoder(
            _pipeline_file(version_directory, config),
            input_name=self.input,
            max_batch_size=config["max_batch_size"],
            num_threads=thread_budget() if num_threads == -1 else num_threads,
            device_id=device_id,
        )
        self._recorder = recorder_from_environment(config["name"], self._decoder.contract)

    def run(self, requests: Sequence[np.ndarray]) -> list[list[np.ndarray] | str]:
        """Decode a batch.

        Args:
            requests: the encoded images of each request, (num_images, size_bytes) uint8.

        Returns:
            For each request the pixels of its images, which the next run overwrites, or an error text.
        """
        arrived_ns = time.time_ns()
        decoded, start = self._decoder.decode([image for images in requests for image in images]), 0
        answers = []
        for images in requests:
            answers.append(_pixels(decoded[start : start + len(images)]))
            start += len(images)
        if self._recorder is not None:
            pairs = zip(requests, answers, strict=True)
            answered = [images for images, answer in pairs if not isinstance(answer, str)]
            self._recorder.offer([image for images in answered for image in images], arrived_ns)
        return answers

    def close(self) -> None:
        """Write the images recorded so far, and end the recording."""
        if self._recorder is not None:
            self._recorder.close()


def _pixels(decoded: Sequence[np.ndarray | ImageRejected]) -> list[np.ndarray] | str:
    """The answer to a request; one bad image refuses the whole request."""
    images = []
    for position, image in enumerate(decoded):
        if isinstance(image, ImageRejected):
            return f"image {position + 1} of {len(decoded)}: {image}" if len(decoded) > 1 else str(image)
        images.append(image)
    return images


def _pipeline_file(version_directory: Path, config: dict[str, Any]) -> Path:
    """Find the pipeline in the native backend's order: the named or serialised file, then `dali.py`."""
    candidates = [config.get("default_model_filename") or SERIALIZED_FILE, PYTHON_FILE]
    for name in candidates:
        if (version_directory / name).is_file():
            return version_directory / name
    raise ServerError(f"{config['name']}: no {' or '.join(candidates)} in version {version_directory.name}")
