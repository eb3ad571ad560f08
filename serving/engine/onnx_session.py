"""An ONNX Runtime session as a Triton model configuration asks for it.

Honours what NVIDIA's onnxruntime backend honours; `docs/backends.md` lists every setting.

Source:
    triton-inference-server/onnxruntime_backend README, sections "Model Config Options" and "Optimization".
"""

import logging
from pathlib import Path
from typing import Any

import onnxruntime

from fruitstand.errors import ServerError
from fruitstand.machine.threads import thread_budget
from fruitstand.repository.triton_keys import (
    CPU_ACCELERATORS,
    CUDA_PARAMETERS,
    DEPRECATED_CUDA_PARAMETERS,
    DEPRECATED_CUDA_VALUES,
    GRAPH_LEVELS,
    TENSORRT_OPTION_NAMES,
    TENSORRT_PARAMETERS,
)
from fruitstand.repository.versions import verify_model_file
from serving.engine.settings import checked_map, checked_parameters
from serving.engine.tensorrt_libraries import load_tensorrt

log = logging.getLogger("fruitstand.backend")

ARENA_SHRINKAGE = "memory.enable_memory_arena_shrinkage"
_TENSORRT = "TensorrtExecutionProvider"
_TRUE = ("1", "true")


def open_session(
    version_directory: Path,
    config: dict[str, Any],
    *,
    device_id: int | None,
    trusted_keys: Path | None = None,
    num_threads: int | None = None,
    callers: int = 1,
) -> onnxruntime.InferenceSession:
    """Open the session of one model instance.

    Args:
        version_directory: `<repository>/<model>/<version>`.
        config: the model's configuration, as Triton hands it to a backend.
        device_id: of the GPU; None for a KIND_CPU instance.
        trusted_keys: a folder with public keys, one of which must have signed the version.
        num_threads: of the computation; None takes the configuration's, without one the machine's budget.
        callers: how many threads call it at the same time; each of them gets its share of those threads.

    Raises:
        ArtefactError: the file is not the one that was published, or is not signed as asked.
        ServerError: no model file, an unknown key or value, or an accelerator this installation lacks.
    """
    path = version_directory / (config.get("default_model_filename") or "model.onnx")
    if path.is_dir():
        path = path / "model.onnx"
    if not path.exists():
        raise ServerError(f"{config['name']}: no file {path.name} in version {version_directory.name}")
    verify_model_file(path, trusted_keys=trusted_keys)  # whoever asked for the load, other bytes stay out
    options = session_options(config, device_id=device_id)
    providers = execution_providers(config, device_id=device_id)
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    all_threads = options.intra_op_num_threads
    options.intra_op_num_threads = max(1, all_threads // callers)
    for name, provider_options in providers:
        if name == "OpenVINOExecutionProvider":  # it does not look at the session's number, and takes all
            provider_options["num_of_threads"] = str(all_threads)
            provider_options["num_streams"] = str(callers)
            # It would bind them to the first cores, the same ones in every process on the machine.
            provider_options.setdefault("load_config", '{"CPU": {"ENABLE_CPU_PINNING": false}}')
    if device_id is not None:  # where pip puts NVIDIA's libraries no loader looks
        onnxruntime.preload_dlls()
    asked = providers[0][0]
    missing = load_tensorrt() if asked == _TENSORRT else ""
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as exc:  # ONNX Runtime raises one class per status code, with no common base
        reason = " ".join(str(exc).replace(str(path), path.name).split())
        raise ServerError(
            f"{config['name']}: {path.name} cannot be loaded by ONNX Runtime: {reason}"
        ) from exc
    if device_id is not None and "CUDAExecutionProvider" not in session.get_providers():
        raise ServerError(
            f"{config['name']}: a GPU instance, but ONNX Runtime cannot use CUDA; see nvidia-smi and the"
            " serve-gpu extra"
        )
    if session.get_providers()[0] != asked:
        used = session.get_providers()[0]
        log.warning(
            "%s: %s is not used, fell back to %s: %s", config["name"], asked, used, missing or "see its log"
        )
    return session


def session_options(config: dict[str, Any], *, device_id: int | None = None) -> onnxruntime.SessionOptions:
    """Session options from `parameters`, `optimization.graph` and `model_operations`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    if level not in GRAPH_LEVELS:
        raise ServerError(f"{config['name']}: graph level {level}, allowed -1, 0, 1 or 2")
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, GRAPH_LEVELS[level])
    parameters = checked_parameters(config, "onnxruntime", on_gpu=device_id is not None)
    options.intra_op_num_threads = intra_op_threads(config, device_id=device_id)
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", "0"))
    if parameters.get("execution_mode") == "1":
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = parameters.get("enable_mem_arena", "1") in _TRUE
    options.enable_mem_pattern = parameters.get("enable_mem_pattern", "1") in _TRUE
    initializers = "session.use_device_allocator_for_initializers"
    if initializers in parameters:
        options.add_session_config_entry(initializers, parameters[initializers])
    for library in config.get("model_operations", {}).get("op_library_filename", []):
        try:
            options.register_custom_ops_library(library)
        except Exception as exc:  # as when a session is opened
            raise ServerError(
                f"{config['name']}: op_library_filename {Path(library).name} cannot be loaded"
            ) from exc
    return options


def intra_op_threads(config: dict[str, Any], *, device_id: int | None = None) -> int:
    """Of one instance's computation."""
    parameters = checked_parameters(config, "onnxruntime", on_gpu=device_id is not None)
    # 0 is natively ONNX Runtime's own choice, which knows no cgroup. Instances on processors share the cores.
    instances = sum(group["count"] for group in config.get("instance_group", [])) if device_id is None else 1
    share = max(1, thread_budget() // max(1, instances))
    return int(parameters.get("intra_op_thread_count", "0")) or share


def run_options(config: dict[str, Any]) -> onnxruntime.RunOptions | None:
    """Options of each call; None where the configuration has none."""
    value = config.get("parameters", {}).get(ARENA_SHRINKAGE, {}).get("string_value")
    if value is None:
        return None
    options = onnxruntime.RunOptions()
    options.add_run_config_entry(ARENA_SHRINKAGE, value)
    return options


def execution_providers(config: dict[str, Any], *, device_id: int | None) -> list[tuple[str, dict[str, str]]]:
    """Execution providers from `optimization.execution_accelerators`, the preferred one first.

    An accelerator that the installed ONNX Runtime lacks is named in the log, and the next one computes.

    Raises:
        ServerError: an unknown accelerator or parameter, or a GPU instance without the CUDA provider.
    """
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    if device_id is None:
        providers = _cpu_providers(config["name"], accelerators.get("cpu_execution_accelerator", []))
    else:
        providers = _gpu_providers(config, accelerators.get("gpu_execution_accelerator", []), device_id)
    providers.append(("CPUExecutionProvider", {}))
    available = onnxruntime.get_available_providers()
    for name, _ in providers:
        if name == "CUDAExecutionProvider" and name not in available:
            raise ServerError(
                f"{config['name']}: a GPU instance, but the installed onnxruntime has no {name}; install the"
                " serve-gpu extra"
            )
        if name not in available:
            log.warning(
                "%s: the installed onnxruntime has no %s, the next one computes", config["name"], name
            )
    return [provider for provider in providers if provider[0] in available]


def _cpu_providers(name: str, accelerators: list[dict[str, Any]]) -> list[tuple[str, dict[str, str]]]:
    for accelerator in accelerators:
        if accelerator["name"] not in CPU_ACCELERATORS:
            raise ServerError(f"{name}: unknown Execution Accelerator {accelerator['name']!r}")
        if accelerator.get("parameters"):
            log.warning("%s: parameters of openvino have no effect, as natively", name)
    return [("OpenVINOExecutionProvider", {"device_type": "CPU"}) for _ in accelerators]


def _gpu_providers(
    config: dict[str, Any], accelerators: list[dict[str, Any]], device_id: int
) -> list[tuple[str, dict[str, str]]]:
    device = {"device_id": str(device_id)}
    given = checked_parameters(config, "onnxruntime", on_gpu=True)
    cuda = {
        key: DEPRECATED_CUDA_VALUES.get(key, {}).get(given[key], given[key])
        for key in DEPRECATED_CUDA_PARAMETERS
        if key in given
    }
    providers = []
    for accelerator in accelerators:
        name, parameters = accelerator["name"], accelerator.get("parameters", {})
        if name == "tensorrt":
            checked_map(f"{config['name']}: tensorrt", parameters, TENSORRT_PARAMETERS)
            named = {TENSORRT_OPTION_NAMES.get(key, key): value for key, value in parameters.items()}
            providers.append((_TENSORRT, {**device, **named}))
        elif name == "cuda":
            checked_map(f"{config['name']}: cuda", parameters, CUDA_PARAMETERS)
            cuda = {**cuda, **parameters}
        else:
            raise ServerError(f"{config['name']}: unknown Execution Accelerator {name!r}")
    return [*providers, ("CUDAExecutionProvider", {**device, **cuda})]
