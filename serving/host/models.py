"""The Python functions that the C++ backend calls: checks, session options, the decode step and the sampler.

Every function takes and returns plain data. Nothing here may import `onnxruntime`, or the process would load
the library twice: the C++ opens the one in the wheel.
"""

import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from fruitstand.contract import FEATURES, KNOWN, PIXELS, PROBABILITIES
from fruitstand.errors import FruitstandError, ServerError
from fruitstand.repository.versions import on_trial
from serving.engine.decode_step import DecodeStep
from serving.engine.onnx_signature import TYPES, Tensor, check_signature
from serving.engine.sampler import Sampler, sampler_from_environment
from serving.engine.session_plan import (
    OPENVINO,
    checked_model_file,
    execution_providers,
    intra_op_threads,
    load_failure,
    share_threads,
)


def read_settings(config_json: str) -> SimpleNamespace:
    """Tensors and limits of a model, for its queue in `model.cc`.

    The limits are in `parameters`, or in `dynamic_batching` if the file was written for Triton's batcher.

    Raises:
        ServerError: this backend does not support the type of a tensor.
    """
    config = json.loads(config_json)
    parameters = {key: one["string_value"] for key, one in config.get("parameters", {}).items()}
    policy = config.get("dynamic_batching", {}).get("default_queue_policy", {})

    def limit(key: str) -> int:
        return int(parameters.get(key, policy.get(key, 0)))

    needs_one_length = any(
        not one.get("allow_ragged_batch") for one in config["input"] if -1 in map(int, one["dims"])
    )
    override = parameters.get("allow_timeout_override", str(policy.get("allow_timeout_override", True)))
    warmups = [one["batch_size"] * max(1, one.get("count", 0)) for one in config.get("model_warmup", [])]
    return SimpleNamespace(
        inputs=[_tensor_settings(config["name"], one) for one in config["input"]],
        outputs=[_tensor_settings(config["name"], one) for one in config["output"]],
        max_batch_size=int(config["max_batch_size"]),
        is_ragged=not needs_one_length,  # requests of different shapes may share a batch
        max_queue_size=limit("max_queue_size"),  # 0 sets no limit
        default_timeout_us=limit("default_timeout_microseconds"),
        allow_timeout_override=override.lower() in ("1", "true"),
        max_queue_delay_us=int(parameters.get("max_queue_delay_microseconds", 0)),
        max_part_images=int(parameters.get("max_part_images", 16)),
        num_warmup_requests=sum(warmups),
    )


def _tensor_settings(model: str, tensor: dict[str, Any]) -> SimpleNamespace:
    data_type = tensor["data_type"]
    if data_type not in TYPES or not TYPES[data_type].size_bytes:
        raise ServerError(f"{model}: {tensor['name']} is {data_type}, which this backend does not support")
    known = TYPES[data_type]
    return SimpleNamespace(
        name=tensor["name"],
        triton_type=known.triton_number,
        onnx_type=known.onnx_number,
        item_size_bytes=known.size_bytes,
        dims=list(map(int, tensor["dims"])),
    )


def describe_error(error: BaseException) -> str:
    """An error on one line: the message, preceded by the class unless it is one of ours."""
    words = " ".join(str(error).split())
    return words if isinstance(error, FruitstandError) else f"{type(error).__name__}: {words}"


def refusal(model_directory: str, version: int, reason: str) -> str | None:
    """The answer of a version on trial that failed to load; None for a version that has to load."""
    model = Path(model_directory)
    return reason.replace(f"{model}/", "") if on_trial(model, version) else None


class Decode:
    """The decode step of one instance."""

    def __init__(self, step: DecodeStep) -> None:
        self._step = step

    def decode(self, requests: list[tuple[tuple[memoryview, tuple[int, ...]], ...]]) -> list[Any]:
        """Decode a batch.

        Args:
            requests: the inputs of each request, here one, as bytes and shape.

        Returns:
            For each request an error text, or its outputs, here one, as (shape, [array, ...]).
        """
        encoded = [np.frombuffer(view, np.uint8).reshape(shape) for ((view, shape),) in requests]
        return [
            answer if isinstance(answer, str) else [((len(answer), *answer[0].shape), answer)]
            for answer in self._step.run(encoded)
        ]

    def close(self) -> None:
        """Write the images recorded so far, and end the recording."""
        self._step.close()


def open_decoder(model_directory: str, version: int, config_json: str) -> Decode:
    """Build the decode pipeline of one CPU instance."""
    return Decode(DecodeStep(Path(model_directory, str(version)), json.loads(config_json), device_id=None))


def onnxruntime_library() -> str:
    """Path of the C library in the installed `onnxruntime`.

    Raises:
        ServerError: `onnxruntime` is not installed, or its wheel lacks the library.
    """
    spec = importlib.util.find_spec("onnxruntime")
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = sorted(path for folder in folders for path in Path(folder, "capi").glob("libonnxruntime.so.*"))
    if not found:
        raise ServerError("no libonnxruntime.so in the installed onnxruntime; install the serve-cpu extra")
    return str(found[-1])


def plan_inference(
    model_directory: str, version: int, config_json: str, available: list[str], for_workers: bool
) -> SimpleNamespace:
    """Choose file, engine and threads of one instance, as plain data for `engine.cc`.

    Args:
        model_directory: `<repository>/<model>`.
        version: the model version.
        config_json: its configuration.
        available: execution providers of the library.
        for_workers: True divides the engine threads among several callers; False gives one caller all of
            them.

    Raises:
        ArtefactError: the file is not the published one, or lacks the required signature.
        ServerError: no model file, or an unknown key or value.
    """
    config = json.loads(config_json)
    keys = os.environ.get("FRUITSTAND_TRUSTED_KEYS")
    path = checked_model_file(
        Path(model_directory, str(version)), config, trusted_keys=Path(keys) if keys else None
    )
    providers = execution_providers(config, device_id=None, available=available)
    parameters = {key: one["string_value"] for key, one in config.get("parameters", {}).items()}
    threads, share = intra_op_threads(config), int(parameters.get("threads_per_worker", 1))
    workers = int(parameters.get("num_workers", 0)) or max(1, threads // share)
    threads_per_caller = share_threads(
        providers,
        num_threads=workers * share if for_workers else threads,
        callers=workers if for_workers else 1,
    )
    openvino = dict(providers).get(OPENVINO)
    return SimpleNamespace(
        model_path=str(path),
        num_workers=workers,
        workers_need_their_own=workers > 1 or share != threads,
        intra_op_threads=threads_per_caller,
        uses_openvino=openvino is not None,
        openvino_options=list((openvino or {}).items()),
    )


def describe_load_failure(config_json: str, path: str, reason: str) -> str:
    """The error message for a file that ONNX Runtime cannot open."""
    return str(load_failure(json.loads(config_json), Path(path), reason))


FileTensors = list[tuple[str, int, list[int]]]
"""Name, ONNX type number and dims of each input or output of an opened file."""


def check_file(config_json: str, inputs: FileTensors, outputs: FileTensors) -> None:
    """Check a configuration against the opened file.

    Raises:
        ServerError: number, name, type or dims differ, or the file has no batch axis.
    """
    names = {one.onnx_number: name for name, one in TYPES.items()}

    def known(tensors: FileTensors) -> list[Tensor]:
        for name, onnx_type, _ in tensors:
            if onnx_type not in names:
                raise ServerError(f"{name}: Triton has no type for ONNX's type {onnx_type}")
        return [Tensor(name, names[onnx_type], dims) for name, onnx_type, dims in tensors]

    check_signature(json.loads(config_json), known(inputs), known(outputs))


class Sampling:
    """The drift sampler of one instance."""

    def __init__(self, sampler: Sampler, outputs: list[str], shape: tuple[int, ...]) -> None:
        self.outputs = outputs
        self._sampler, self._shape = sampler, shape

    def offer(self, num_images: int, views: list[memoryview]) -> int:
        """Offer a batch, as its pixels and outputs; returns nanoseconds until the next one is due."""
        pixels = np.frombuffer(views[0], np.uint8).reshape(num_images, *self._shape)
        arrays = {
            name: np.frombuffer(view, np.float32).reshape(num_images, -1)
            for name, view in zip(self.outputs, views[1:], strict=True)
            if name in (PROBABILITIES, FEATURES, KNOWN)
        }
        self._sampler.offer(pixels, arrays[PROBABILITIES], arrays.get(FEATURES), arrays.get(KNOWN))
        return max(0, round(1e9 * self._sampler.next_in_s))

    def close(self) -> None:
        """Write the remaining samples."""
        self._sampler.close()


def open_sampler(config_json: str, version: int, file_outputs: list[str]) -> Sampling | None:
    """Open the configured sampler; None if there is none, or if the model is not a classifier."""
    config = json.loads(config_json)
    outputs = [one["name"] for one in config["output"]]
    if [one["name"] for one in config["input"]] != [PIXELS] or PROBABILITIES not in outputs:
        return None
    sampler = sampler_from_environment(config["name"], version)
    if sampler is None:
        return None
    outputs += [name for name in (FEATURES, KNOWN) if name in file_outputs and name not in outputs]
    return Sampling(sampler, outputs, tuple(map(int, config["input"][0]["dims"])))
