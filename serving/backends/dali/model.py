"""Stands in for NVIDIA's dali backend: runs the model's pipeline and answers each request for itself."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from fruitstand.errors import ImageRejected, ServerError
from fruitstand.images.dali_pipeline import PYTHON_FILE, SERIALIZED_FILE
from fruitstand.machine.threads import thread_budget
from serving.engine.decoder import Decoder
from serving.engine.pipeline import Pipeline, check_outputs
from serving.engine.settings import checked_parameters


class TritonPythonModel:
    """One instance of a model with `backend: "dali"`."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        # Inputs have to be written: through this interface none can be given allow_ragged_batch.
        if auto_complete_model_config.as_dict()["max_batch_size"] > 1:
            auto_complete_model_config.set_dynamic_batching()
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        on_gpu = args["model_instance_kind"] == "GPU"
        parameters = checked_parameters(config, "dali", on_gpu=on_gpu)
        num_threads = int(parameters.get("num_threads", "-1"))
        options = {
            "max_batch_size": config["max_batch_size"],
            "num_threads": thread_budget() if num_threads == -1 else num_threads,
            "device_id": int(args["model_instance_device_id"]) if on_gpu else None,
        }
        path = _pipeline_file(Path(args["model_repository"], args["model_version"]), config)
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        takes_files = [(one["data_type"], list(map(int, one["dims"]))) for one in config["input"]] == [
            ("TYPE_UINT8", [-1])
        ]
        self._decoder = Decoder(path, input_name=self._inputs[0], **options) if takes_files else None
        self._pipeline = self._decoder.pipeline if self._decoder else Pipeline(path, **options)
        check_outputs(config, self._pipeline)

    def execute(self, requests: list) -> list:
        # No look at is_cancelled: see the onnxruntime backend.
        batches = [self._feeds(request) for request in requests]
        if self._decoder is not None:
            return self._decode(requests, batches)
        return [self._compute(feeds) for feeds in batches]

    def _feeds(self, request) -> "dict[str, np.ndarray] | str":
        """The request's tensors by name, or what is wrong with it."""
        if set(request.requested_output_names()) != set(self._outputs):
            return f"all outputs have to be requested, they are {', '.join(self._outputs)}"
        return {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs}

    def _decode(self, requests: list, batches: list) -> list:
        """One run for the images of all requests."""
        name = self._inputs[0]
        images = [image for feeds in batches if isinstance(feeds, dict) for image in feeds[name]]
        decoded, start, responses = self._decoder.decode(images), 0, []
        for request, feeds in zip(requests, batches, strict=True):
            if not isinstance(feeds, dict):
                responses.append(_refused(feeds))
                continue
            responses.append(self._pixels(decoded[start : start + len(feeds[name])], request))
            start += len(feeds[name])
        return responses

    def _pixels(self, decoded: list, request) -> "pb_utils.InferenceResponse":
        for position, image in enumerate(decoded):
            if isinstance(image, ImageRejected):
                where = f"image {position + 1} of {len(decoded)}: " if len(decoded) > 1 else ""
                # The id is the caller's own text: a quoted and shortened one forges no line.
                pb_utils.Logger.log_info(f"request {request.request_id()[:64]!a}: {where}{image}")
                return _refused(f"{where}{image}")
        pixels = decoded[0][None] if len(decoded) == 1 else np.stack(decoded)
        return pb_utils.InferenceResponse([pb_utils.Tensor(self._outputs[0], pixels)])

    def _compute(self, feeds: "dict[str, np.ndarray] | str") -> "pb_utils.InferenceResponse":
        """One run a request: which of several a failing run is to blame on, nobody says."""
        if not isinstance(feeds, dict):
            return _refused(feeds)
        try:
            results = self._pipeline.run({name: list(batch) for name, batch in feeds.items()})
        except Exception as exc:  # DALI raises RuntimeError, ValueError and TypeError here
            self._pipeline.rebuild()
            return _refused(f"the pipeline cannot process this input ({type(exc).__name__})")
        tensors = [pb_utils.Tensor(*pair) for pair in zip(self._outputs, results, strict=True)]
        return pb_utils.InferenceResponse(tensors)


def _pipeline_file(version_directory: Path, config: dict) -> Path:
    """In the native backend's order: the named file, serialised or Python, then `dali.py`."""
    candidates = [config.get("default_model_filename") or SERIALIZED_FILE, PYTHON_FILE]
    for name in candidates:
        if (version_directory / name).is_file():
            return version_directory / name
    raise ServerError(f"{config['name']}: no {' or '.join(candidates)} in version {version_directory.name}")


def _refused(reason: str) -> "pb_utils.InferenceResponse":
    error = pb_utils.TritonError(reason, pb_utils.TritonError.INVALID_ARG)
    return pb_utils.InferenceResponse(error=error)
