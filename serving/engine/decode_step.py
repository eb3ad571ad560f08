"""The decode step: decode a batch of requests.

Used by `serving/backends/dali/model.py` in a process of Triton's Python backend, and by
`serving/host/models.py` inside the server.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fruitstand.errors import ImageRejected, ServerError
from fruitstand.images.dali_pipeline import PYTHON_FILE, SERIALIZED_FILE
from fruitstand.machine.threads import thread_budget
from serving.engine.decoder import Decoder
from serving.engine.pipeline import Pipeline, check_outputs
from serving.engine.recorder import recorder_from_environment
from serving.engine.settings import checked_parameters


@dataclass(frozen=True, slots=True)
class Output:
    """One output of one request."""

    shape: tuple[int, ...]
    """Includes the batch axis."""
    parts: list[np.ndarray]
    """Arrays to concatenate along the batch axis; the next run overwrites them."""

    def joined(self) -> np.ndarray:
        """The parts as one array."""
        return self.parts[0].reshape(self.shape) if len(self.parts) == 1 else np.stack(self.parts)


class DecodeStep:
    """One instance of a model with `backend: "dali"`; not thread-safe."""

    def __init__(self, version_directory: Path, config: dict[str, Any], *, device_id: int | None) -> None:
        """Build the pipeline.

        Args:
            version_directory: `<repository>/<model>/<version>`.
            config: the model's configuration, as Triton passes it to a backend.
            device_id: GPU to use; None for a KIND_CPU instance.

        Raises:
            ArtefactError: the file does not hold exactly one pipeline.
            ServerError: no file, an unknown key or value, or the pipeline cannot be built.
            UsageError: a variable that controls recording has a wrong value.
        """
        parameters = checked_parameters(config, "dali", on_gpu=device_id is not None)
        num_threads = int(parameters.get("num_threads", "-1"))
        options = {
            "max_batch_size": config["max_batch_size"],
            "num_threads": thread_budget() if num_threads == -1 else num_threads,
            "device_id": device_id,
        }
        path = _pipeline_file(version_directory, config)
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        takes_files = [(one["data_type"], list(map(int, one["dims"]))) for one in config["input"]] == [
            ("TYPE_UINT8", [-1])
        ]
        self._decoder = Decoder(path, input_name=self.inputs[0], **options) if takes_files else None
        self._pipeline = self._decoder.pipeline if self._decoder else Pipeline(path, **options)
        check_outputs(config, self._pipeline)
        self._recorder = None
        if self._decoder is not None:
            self._recorder = recorder_from_environment(config["name"], self._decoder.contract)

    def run(self, requests: Sequence[Mapping[str, np.ndarray]]) -> list[list[Output] | str]:
        """Compute a batch.

        Args:
            requests: the inputs of each request by name, with a batch axis.

        Returns:
            For each request its outputs in the configuration's order, or an error text for the caller.
        """
        if self._decoder is None:
            return [self._compute(feeds) for feeds in requests]
        name, arrived_ns = self.inputs[0], time.time_ns()
        decoded, start = self._decoder.decode([image for feeds in requests for image in feeds[name]]), 0
        answers = []
        for feeds in requests:
            answers.append(_pixels(decoded[start : start + len(feeds[name])]))
            start += len(feeds[name])
        if self._recorder is not None:
            pairs = zip(requests, answers, strict=True)
            answered = [feeds[name] for feeds, answer in pairs if not isinstance(answer, str)]
            self._recorder.offer([image for images in answered for image in images], arrived_ns)
        return answers

    def close(self) -> None:
        """Write the images recorded so far, and end the recording."""
        if self._recorder is not None:
            self._recorder.close()

    def _compute(self, feeds: Mapping[str, np.ndarray]) -> list[Output] | str:
        """Run the pipeline for one request only, so that a failure belongs to that request."""
        try:
            results = self._pipeline.run({name: list(batch) for name, batch in feeds.items()})
        except Exception as exc:  # DALI raises RuntimeError, ValueError and TypeError here
            self._pipeline.rebuild()
            return f"the pipeline cannot process this input ({type(exc).__name__})"
        return [Output(array.shape, [np.ascontiguousarray(array).copy()]) for array in results]


def _pixels(decoded: Sequence[np.ndarray | ImageRejected]) -> list[Output] | str:
    """The answer to a request; one bad image refuses the whole request."""
    images = []
    for position, image in enumerate(decoded):
        if isinstance(image, ImageRejected):
            return f"image {position + 1} of {len(decoded)}: {image}" if len(decoded) > 1 else str(image)
        images.append(image)
    return [Output((len(images), *images[0].shape), images)]


def _pipeline_file(version_directory: Path, config: dict[str, Any]) -> Path:
    """Find the pipeline in the native backend's order: the named or serialised file, then `dali.py`."""
    candidates = [config.get("default_model_filename") or SERIALIZED_FILE, PYTHON_FILE]
    for name in candidates:
        if (version_directory / name).is_file():
            return version_directory / name
    raise ServerError(f"{config['name']}: no {' or '.join(candidates)} in version {version_directory.name}")
