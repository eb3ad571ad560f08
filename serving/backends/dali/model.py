"""Replaces NVIDIA's dali backend: runs the model's pipeline and answers each request separately."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from serving.engine.decode_step import DecodeStep


class TritonPythonModel:
    """One instance of a model with `backend: "dali"`."""

    def initialize(self, args: dict[str, str]) -> None:
        on_gpu = args["model_instance_kind"] == "GPU"
        self._step = DecodeStep(
            Path(args["model_repository"], args["model_version"]),
            json.loads(args["model_config"]),
            device_id=int(args["model_instance_device_id"]) if on_gpu else None,
        )

    def execute(self, requests: list) -> list:
        # Do not call is_cancelled: see the onnxruntime backend.
        encoded = [
            pb_utils.get_input_tensor_by_name(request, self._step.input).as_numpy() for request in requests
        ]
        return list(map(self._response, requests, self._step.run(encoded)))

    def finalize(self) -> None:
        self._step.close()

    def _response(self, request, answer) -> "pb_utils.InferenceResponse":
        if isinstance(answer, str):
            # The caller chose the id: quoted and shortened, it cannot forge a log line.
            pb_utils.Logger.log_info(f"request {request.request_id()[:64]!a}: {answer}")
            error = pb_utils.TritonError(answer, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        return pb_utils.InferenceResponse([pb_utils.Tensor(self._step.output, np.stack(answer))])
