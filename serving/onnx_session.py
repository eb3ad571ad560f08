"""An ONNX Runtime session as a Triton model configuration asks for it.

Honours what NVIDIA's onnxruntime backend honours; a key it does not know is an error, as it is there.

Source:
    triton-inference-server/onnxruntime_backend README, sections "Model Config Options" and "Optimization".
"""

import logging
from pathlib import Path
from typing import Any

import onnxruntime

from fruitstand.artefacts import read_json
from fruitstand.errors import ServerError
from fruitstand.triton_keys import (
    CPU_ACCELERATORS,
    DEPRECATED_CUDA_PARAMETERS,
    GRAPH_LEVELS,
    PRECISION_MODES,
    TENSORRT_OPTION_NAMES,
    TENSORRT_PARAMETERS,
)
from fruitstand.versions import MANIFEST_NAME, verify_file

log = logging.getLogger("fruitstand.onnxruntime")

# The first has no counterpart in Python, the others belong to the accelerator "cuda".
_IGNORED_KEYS = {"memory.enable_memory_arena_shrinkage", *DEPRECATED_CUDA_PARAMETERS}


def open_session(
    version_directory: Path, config: dict[str, Any], *, device_id: int | None, num_threads: int | None = None
) -> onnxruntime.InferenceSession:
    """Open the session of one model instance.

    Args:
        version_directory: `<repository>/<model>/<version>`.
        config: the model's configuration, as Triton hands it to a backend.
        device_id: of the GPU; None for a KIND_CPU instance.
        num_threads: of the computation; None leaves it to the configuration and to OpenVINO, which takes all.

    Raises:
        ArtefactError: the file is not the one that was published.
        ServerError: no model file, an unknown key or value, or an accelerator this installation lacks.
    """
    path = version_directory / (config.get("default_model_filename") or "model.onnx")
    if not path.exists():
        raise ServerError(f"{config['name']}: no file {path.name} in version {version_directory.name}")
    if (version_directory / MANIFEST_NAME).is_file():  # whoever asked for the load, altered bytes stay out
        verify_file(path, read_json(version_directory / MANIFEST_NAME)["files"][path.name]["sha256"])
    options = session_options(config)
    providers = execution_providers(config, device_id=device_id)
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
        for name, provider_options in providers:
            if name == "OpenVINOExecutionProvider":  # it does not look at the session's number
                provider_options["num_of_threads"] = str(num_threads)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as exc:  # ONNX Runtime raises one class per status code, with no common base
        reason = " ".join(str(exc).replace(str(path), path.name).split())
        raise ServerError(
            f"{config['name']}: {path.name} cannot be loaded by ONNX Runtime: {reason}"
        ) from exc
    asked = providers[0][0]
    if session.get_providers()[0] != asked:
        log.warning("%s: %s is not used, fell back to %s", config["name"], asked, session.get_providers()[0])
    return session


def session_options(config: dict[str, Any]) -> onnxruntime.SessionOptions:
    """Session options from `parameters` and `optimization.graph`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    if level not in GRAPH_LEVELS:
        raise ServerError(f"{config['name']}: graph level {level}, allowed -1, 0, 1 or 2")
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, GRAPH_LEVELS[level])
    for key, value in _parameters(config).items():
        if key == "intra_op_thread_count":
            options.intra_op_num_threads = _integer(config, key, value)
        elif key == "inter_op_thread_count":
            options.inter_op_num_threads = _integer(config, key, value)
        elif key == "execution_mode":
            modes = onnxruntime.ExecutionMode
            mode = {"0": modes.ORT_SEQUENTIAL, "1": modes.ORT_PARALLEL}.get(value)
            if mode is None:
                raise ServerError(f"{config['name']}: execution_mode {value!r}, allowed 0 or 1")
            options.execution_mode = mode
        elif key == "enable_mem_arena":
            options.enable_cpu_mem_arena = _boolean(config, key, value)
        elif key == "enable_mem_pattern":
            options.enable_mem_pattern = _boolean(config, key, value)
        elif key == "session.use_device_allocator_for_initializers":
            options.add_session_config_entry(key, value)
        elif key in _IGNORED_KEYS:
            log.warning("%s: parameter %s has no effect in the embedded server", config["name"], key)
        else:
            raise ServerError(f"{config['name']}: unknown parameter {key!r}")
    return options


def execution_providers(config: dict[str, Any], *, device_id: int | None) -> list[tuple[str, dict[str, str]]]:
    """Execution providers from `optimization.execution_accelerators`, the preferred one first."""
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    providers: list[tuple[str, dict[str, str]]] = []
    if device_id is None:
        for accelerator in accelerators.get("cpu_execution_accelerator", []):
            if accelerator["name"] not in CPU_ACCELERATORS:
                raise ServerError(f"{config['name']}: unknown Execution Accelerator {accelerator['name']!r}")
            if accelerator.get("parameters"):
                log.warning("%s: openvino takes no parameters, ignored", config["name"])
            providers.append(("OpenVINOExecutionProvider", {"device_type": "CPU"}))
    else:
        device = {"device_id": str(device_id)}
        for accelerator in accelerators.get("gpu_execution_accelerator", []):
            parameters = accelerator.get("parameters", {})
            if accelerator["name"] == "tensorrt":
                providers.append(("TensorrtExecutionProvider", {**device, **_tensorrt_options(parameters)}))
            elif accelerator["name"] == "cuda":
                providers.append(("CUDAExecutionProvider", {**device, **parameters}))
            else:
                raise ServerError(f"{config['name']}: unknown Execution Accelerator {accelerator['name']!r}")
        if not any(name == "CUDAExecutionProvider" for name, _ in providers):
            providers.append(("CUDAExecutionProvider", device))
    providers.append(("CPUExecutionProvider", {}))
    missing = [name for name, _ in providers if name not in onnxruntime.get_available_providers()]
    if missing:
        raise ServerError(
            f"{config['name']}: the installed onnxruntime has no {missing[0]};"
            " install the serve-cpu extra for OpenVINO, serve-gpu for CUDA and TensorRT"
        )
    return providers


def _tensorrt_options(parameters: dict[str, str]) -> dict[str, str]:
    unknown = sorted(set(parameters) - set(TENSORRT_PARAMETERS))
    if unknown:
        raise ServerError(f"tensorrt: unknown parameter {unknown[0]!r}")
    options = {
        TENSORRT_OPTION_NAMES.get(key, key): value
        for key, value in parameters.items()
        if key != "precision_mode"
    }
    precision = parameters.get("precision_mode", "FP32")
    if precision not in PRECISION_MODES:
        raise ServerError(f"tensorrt: precision_mode {precision!r}, allowed {', '.join(PRECISION_MODES)}")
    return {**options, **PRECISION_MODES[precision]}


def _parameters(config: dict[str, Any]) -> dict[str, str]:
    return {key: entry["string_value"] for key, entry in config.get("parameters", {}).items()}


def _integer(config: dict[str, Any], key: str, value: str) -> int:
    if not value.isdecimal():
        raise ServerError(f"{config['name']}: {key} is {value!r}, allowed a whole number")
    return int(value)


def _boolean(config: dict[str, Any], key: str, value: str) -> bool:
    if value not in ("0", "1", "false", "true"):
        raise ServerError(f"{config['name']}: {key} is {value!r}, allowed 0, 1, false or true")
    return value in ("1", "true")
