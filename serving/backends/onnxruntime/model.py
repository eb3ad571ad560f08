"""Replaces NVIDIA's onnxruntime backend: runs ONNX Runtime once for each batch that Triton forms."""

import functools
import json
import os
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from fruitstand.contract import FEATURES, KNOWN, PIXELS, PROBABILITIES
from fruitstand.repository.versions import on_trial
from serving.engine.sampler import sampler_from_environment

TYPES = {"TYPE_UINT8": np.uint8, "TYPE_FP32": np.float32}
"""Input types that the warm-up supports."""


class TritonPythonModel:
    """One instance of a model with `backend: "onnxruntime"`."""

    def initialize(self, args: dict[str, str]) -> None:
        self._sampler, self._refused = None, None
        model, version = Path(args["model_repository"]), int(args["model_version"])
        try:
            self._load(args)
        except Exception as exc:
            # Triton 24.10 sometimes crashes when one of several versions fails to load. So a version on trial
            # beside the served one loads, and refuses every request.
            if not on_trial(model, version):
                raise
            self._refused = _Refused(json.loads(args["model_config"]), str(exc).replace(f"{model}/", ""))
            pb_utils.Logger.log_error(f"version {version} is refused: {exc}")

    def _load(self, args: dict[str, str]) -> None:
        # Imported here, because these imports take a second and belong to the load.
        from serving.engine.division import DividedSession, divide
        from serving.engine.onnx_signature import check_signature, tensors_of
        from serving.engine.session_plan import intra_op_threads
        from serving.engine.sized import SizedSession, plans_each_size

        config = json.loads(args["model_config"])
        on_gpu = args["model_instance_kind"] == "GPU"
        directory = Path(args["model_repository"], args["model_version"])
        device_id = int(args["model_instance_device_id"]) if on_gpu else None
        open_for = functools.partial(_open, directory, config, device_id)
        session = self._session = open_for(1)
        check_signature(config, tensors_of(session.get_inputs()), tensors_of(session.get_outputs()))
        one_image = _one_image(config)
        if not on_gpu and config["max_batch_size"] > 0:
            threads = intra_op_threads(config)
            is_divided = threads > 1 and len(divide(config["max_batch_size"], threads)) > 1
            self._session = DividedSession(session, open_for(threads) if is_divided else session, threads)
        elif config["max_batch_size"] > 1 and plans_each_size(session):
            self._session = SizedSession(session, lambda: open_for(1), config["max_batch_size"])
        if self._session is not session and one_image:
            self._session.warm_up([tensor["name"] for tensor in config["output"]], one_image)
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        self._batches: dict[str, np.ndarray] = {}
        self._max_batch_size = config["max_batch_size"]
        sampled = self._inputs == [PIXELS] and PROBABILITIES in self._outputs
        version = int(args["model_version"])
        self._sampler = sampler_from_environment(config["name"], version) if sampled else None
        found = {one.name for one in session.get_outputs()}
        self._sampled_outputs = [
            *self._outputs,
            *(name for name in (FEATURES, KNOWN) if name in found and name not in self._outputs),
        ]

    def execute(self, requests: list) -> list:
        if self._refused is not None:
            return [self._refused.response() for _ in requests]
        # Do not call is_cancelled: it asks the server through a queue and costs more than most answers.
        # Triton drops requests that were cancelled before it forms a batch.
        feeds = {}
        for name in self._inputs:
            parts = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
            feeds[name] = parts[0] if len(parts) == 1 else self._joined(name, parts)
        is_sampled = self._sampler is not None and self._sampler.is_due()
        outputs = self._sampled_outputs if is_sampled else self._outputs
        results = dict(zip(outputs, self._session.run(outputs, feeds), strict=True))
        if is_sampled:
            self._sampler.offer(
                feeds[PIXELS], results[PROBABILITIES], results.get(FEATURES), results.get(KNOWN)
            )
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
        """Join the parts in an array that every batch reuses, because fresh memory pages cost time."""
        if name not in self._batches:
            shape = (self._max_batch_size, *parts[0].shape[1:])
            self._batches[name] = np.empty(shape, parts[0].dtype)
        batch = self._batches[name][: sum(map(len, parts))]
        if batch.shape[1:] != parts[0].shape[1:]:  # dims with -1: the size differs from the first batch's
            return np.concatenate(parts)
        return np.concatenate(parts, out=batch)


def _one_image(config: dict) -> "dict[str, np.ndarray]":
    """The inputs of a batch of one, all zeros; empty if the configuration leaves a type or dimension open."""
    if any(one["data_type"] not in TYPES or min(map(int, one["dims"])) < 1 for one in config["input"]):
        return {}
    return {
        one["name"]: np.zeros((1, *map(int, one["dims"])), TYPES[one["data_type"]]) for one in config["input"]
    }


class _Refused:
    """Answers requests to a version on trial that failed to load, with the reason."""

    def __init__(self, config: dict, reason: str) -> None:
        self._config, self._reason = config, reason
        # The load fails if a warm-up request fails, so warm-up requests get NaN answers, which nobody reads.
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
    """Open a session; if the server has trusted keys, the version must be signed with one."""
    from serving.engine.onnx_session import open_session

    keys = os.environ.get("FRUITSTAND_TRUSTED_KEYS")
    trusted = Path(keys) if keys else None
    return open_session(version_directory, config, device_id=device_id, trusted_keys=trusted, callers=callers)
