"""Stands in for NVIDIA's dali backend: runs the model's `dali.py` and answers each request for itself."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from fruitstand.errors import ImageRejected, ServerError
from serving.decoder import Decoder


class TritonPythonModel:
    """One instance of a model with `backend: "dali"`."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._input, self._output = config["input"][0]["name"], config["output"][0]["name"]
        parameters = {key: entry["string_value"] for key, entry in config["parameters"].items()}
        num_threads = parameters.pop("num_threads", None)
        if parameters:
            raise ServerError(f"{config['name']}: unknown parameter {min(parameters)!r}")
        on_gpu = args["model_instance_kind"] == "GPU"
        self._decoder = Decoder(
            Path(args["model_repository"], args["model_version"], "dali.py"),
            input_name=self._input,
            max_batch_size=config["max_batch_size"],
            num_threads=int(num_threads) if num_threads is not None else None,
            device_id=int(args["model_instance_device_id"]) if on_gpu else None,
        )

    def execute(self, requests: list) -> list:
        batches = [pb_utils.get_input_tensor_by_name(request, self._input).as_numpy() for request in requests]
        decoded = self._decoder.decode([image for batch in batches for image in batch])
        responses, start = [], 0
        for batch in batches:
            responses.append(self._response(decoded[start : start + len(batch)]))
            start += len(batch)
        return responses

    def _response(self, decoded: list) -> "pb_utils.InferenceResponse":
        for position, image in enumerate(decoded):
            if isinstance(image, ImageRejected):
                where = f"image {position + 1} of {len(decoded)}: " if len(decoded) > 1 else ""
                error = pb_utils.TritonError(f"{where}{image}", pb_utils.TritonError.INVALID_ARG)
                return pb_utils.InferenceResponse(error=error)
        pixels = decoded[0][None] if len(decoded) == 1 else np.stack(decoded)
        return pb_utils.InferenceResponse([pb_utils.Tensor(self._output, pixels)])
