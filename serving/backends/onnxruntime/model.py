"""Stands in for NVIDIA's onnxruntime backend: one ONNX Runtime call for each batch Triton forms."""

import functools
import json
import os
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from fruitstand.contract import FEATURES, PIXELS, PROBABILITIES
from fruitstand.repository.versions import on_trial
from serving.engine.sampler import sampler_from_environment

TYPES = {"TYPE_UINT8": np.uint8, "TYPE_FP32": np.float32}
"""Of inputs that are warmed up: those that a classifier of images may have."""


class TritonPythonModel:
    """One instance of a model with `backend: "onnxruntime"`."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        config = auto_complete_model_config.as_dict()
        if config["input"] and config["output"]:
            return auto_complete_model_config  # as natively: then nothing is added, dynamic_batching neither
        from serving.engine.onnx_signature import complete

        session = _open(Path(pb_utils.get_model_dir()), config, None)
        inputs, outputs, max_batch_size = complete(config, session)
        if not config["input"]:
            for tensor in inputs:
                auto_complete_model_config.add_input(
                    {"name": tensor.name, "data_type": tensor.data_type, "dims": tensor.dims}
                )
        if not config["output"]:
            for tensor in outputs:
                auto_complete_model_config.add_output(
                    {"name": tensor.name, "data_type": tensor.data_type, "dims": tensor.dims}
                )
        auto_complete_model_config.set_max_batch_size(max_batch_size)
        if max_batch_size > 1:
            auto_complete_model_config.set_dynamic_batching()
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        self._sampler, self._refused = None, None
        model, version = Path(args["model_repository"]), int(args["model_version"])
        try:
            self._load(args)
        except Exception as exc:
            # A server that loads several versions, of which one fails, dies of it now and then (24.10). So a
            # version that is tried beside the served one is loaded, and says so to whoever asks it.
            if not on_trial(model, version):
                raise
            self._refused = _Refused(json.loads(args["model_config"]), str(exc).replace(f"{model}/", ""))
            pb_utils.Logger.log_error(f"version {version} is refused: {exc}")

    def _load(self, args: dict[str, str]) -> None:
        # Here, not above: importing them takes a second, and is part of the load.
        from serving.engine.division import DividedSession, divide
        from serving.engine.onnx_session import run_options
        from serving.engine.onnx_signature import check_signature
        from serving.engine.session_plan import intra_op_threads
        from serving.engine.sized import SizedSession, plans_each_size

        config = json.loads(args["model_config"])
        on_gpu = args["model_instance_kind"] == "GPU"
        directory = Path(args["model_repository"], args["model_version"])
        device_id = int(args["model_instance_device_id"]) if on_gpu else None
        open_for = functools.partial(_open, directory, config, device_id)
        session = self._session = open_for(1)
        check_signature(config, session)
        one_image = _one_image(config)
        if not on_gpu and config["max_batch_size"] > 0:
            threads = intra_op_threads(config)
            is_divided = threads > 1 and len(divide(config["max_batch_size"], threads)) > 1
            self._session = DividedSession(session, open_for(threads) if is_divided else session, threads)
        elif config["max_batch_size"] > 1 and plans_each_size(session):
            self._session = SizedSession(session, lambda: open_for(1), config["max_batch_size"])
        if self._session is not session and one_image:
            self._session.warm_up([tensor["name"] for tensor in config["output"]], one_image)
        self._run_options = run_options(config)
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        self._batches: dict[str, np.ndarray] = {}
        self._max_batch_size = config["max_batch_size"]
        sampled = self._inputs == [PIXELS] and PROBABILITIES in self._outputs
        self._sampler = sampler_from_environment(int(args["model_version"])) if sampled else None
        self._has_features = FEATURES in {one.name for one in session.get_outputs()}

    def execute(self, requests: list) -> list:
        if self._refused is not None:
            return [self._refused.response() for _ in requests]
        # No look at is_cancelled: it asks the server through a queue, which costs more than most answers.
        # Triton itself drops what was cancelled before it made the next batch.
        feeds = {}
        for name in self._inputs:
            parts = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
            feeds[name] = parts[0] if len(parts) == 1 else self._joined(name, parts)
        is_sampled = self._sampler is not None and self._sampler.is_due()
        outputs = [*self._outputs, FEATURES] if is_sampled and self._has_features else self._outputs
        results = dict(zip(outputs, self._session.run(outputs, feeds, self._run_options), strict=True))
        if is_sampled:
            self._sampler.offer(feeds[PIXELS], results[PROBABILITIES], results.get(FEATURES))
        responses, start = [], 0
        for request, part in zip(requests, parts, strict=True):
            rows = slice(start, start := start + len(part))
            responses.append(
                pb_utils.InferenceResponse(
                    [pb_utils.Tensor(name, results[name][rows]) for name in request.requested_output_names()]
                )
            )
        return responses

    def finalize(self) -> None:
        if self._sampler is not None:
            self._sampler.close()

    def _joined(self, name: str, parts: list[np.ndarray]) -> np.ndarray:
        """The parts in one array whose memory the next batch uses again: fresh pages cost time."""
        if name not in self._batches:
            shape = (self._max_batch_size, *parts[0].shape[1:])
            self._batches[name] = np.empty(shape, parts[0].dtype)
        batch = self._batches[name][: sum(map(len, parts))]
        if batch.shape[1:] != parts[0].shape[1:]:  # dims with -1: another size than the first batch had
            return np.concatenate(parts)
        return np.concatenate(parts, out=batch)


def _one_image(config: dict) -> "dict[str, np.ndarray]":
    """The inputs of a batch of one, all zeros; none where the configuration does not say what they are."""
    if any(one["data_type"] not in TYPES or min(map(int, one["dims"])) < 1 for one in config["input"]):
        return {}
    return {
        one["name"]: np.zeros((1, *map(int, one["dims"])), TYPES[one["data_type"]]) for one in config["input"]
    }


class _Refused:
    """Answers in place of a version that may not be served: with the reason."""

    def __init__(self, config: dict, reason: str) -> None:
        self._config, self._reason = config, reason
        # Triton loads only what warms up without an error, and nobody reads these answers.
        self._warmups = sum(
            one["batch_size"] * max(1, one.get("count", 0)) for one in config.get("model_warmup", [])
        )

    def response(self):
        if self._warmups == 0:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(self._reason))
        self._warmups -= 1
        empty = [
            pb_utils.Tensor(one["name"], np.full((1, *map(int, one["dims"])), np.nan, np.float32))
            for one in self._config["output"]
        ]
        return pb_utils.InferenceResponse(empty)


def _open(version_directory: Path, config: dict, device_id: "int | None", callers: int = 1):
    """Only what the server's trusted keys signed, where it has any."""
    from serving.engine.onnx_session import open_session

    keys = os.environ.get("FRUITSTAND_TRUSTED_KEYS")
    trusted = Path(keys) if keys else None
    return open_session(version_directory, config, device_id=device_id, trusted_keys=trusted, callers=callers)
