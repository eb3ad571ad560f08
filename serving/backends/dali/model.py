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
        feeds = [self._feeds(request) for request in requests]
        answers = iter(self._step.run([one for one in feeds if isinstance(one, dict)]))
        return [
            self._response(request, next(answers) if isinstance(one, dict) else one)
            for request, one in zip(requests, feeds, strict=True)
        ]

    def finalize(self) -> None:
        self._step.close()

    def _feeds(self, request) -> "dict[str, np.ndarray] | str":
        """The request's tensors by name, or an error text."""
        outputs = self._step.outputs
        if set(request.requested_output_names()) != set(outputs):
            return f"all outputs have to be requested, they are {', '.join(outputs)}"
        return {
            name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._step.inputs
        }

    def _response(self, request, answer) -> "pb_utils.InferenceResponse":
        if isinstance(answer, str):
            # The caller chose the id: quoted and shortened, it cannot forge a log line.
            pb_utils.Logger.log_info(f"request {request.request_id()[:64]!a}: {answer}")
            error = pb_utils.TritonError(answer, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        pairs = zip(self._step.outputs, answer, strict=True)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, one.joined()) for name, one in pairs])
