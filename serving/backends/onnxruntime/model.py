"""Stands in for NVIDIA's onnxruntime backend: one ONNX Runtime call for each batch Triton forms."""

import json
import os
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from serving.onnx_session import open_session


class TritonPythonModel:
    """One instance of a model with `backend: "onnxruntime"`."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        trusted_keys = os.environ.get("FRUITSTAND_TRUSTED_KEYS")
        on_gpu = args["model_instance_kind"] == "GPU"
        self._session = open_session(
            Path(args["model_repository"], args["model_version"]),
            config,
            device_id=int(args["model_instance_device_id"]) if on_gpu else None,
            trusted_keys=Path(trusted_keys) if trusted_keys else None,
        )
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: list) -> list:
        feeds = {}
        for name in self._inputs:
            parts = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
            feeds[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        sizes = [len(part) for part in parts]
        results = self._session.run(self._outputs, feeds)
        responses, start = [], 0
        for size in sizes:
            tensors = [
                pb_utils.Tensor(name, result[start : start + size])
                for name, result in zip(self._outputs, results, strict=True)
            ]
            responses.append(pb_utils.InferenceResponse(tensors))
            start += size
        return responses
