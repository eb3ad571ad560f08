"""Translate a Triton model configuration into ONNX Runtime's options, as plain data.

`serving/engine/onnx_session.py` opens a session from them through ONNX Runtime's Python API, and
`serving/host/cpp/engine.cc` through its C API. Threads and accelerators can be set, see `docs/backends.md`.

Source:
    triton-inference-server/onnxruntime_backend README, sections "Model Config Options" and "Optimization".
"""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fruitstand.errors import ServerError
from fruitstand.machine.threads import thread_budget
from fruitstand.repository.versions import verify_model_file
from serving.engine.settings import checked_parameters

log = logging.getLogger("fruitstand.backend")

OPENVINO = "OpenVINOExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

Providers = list[tuple[str, dict[str, str]]]


def intra_op_threads(config: dict[str, Any], *, device_id: int | None = None) -> int:
    """Intra-op threads of one instance.

    Raises:
        ServerError: an unknown key or value.
    """
    parameters = checked_parameters(config, "onnxruntime")
    # With 0 ONNX Runtime would choose, ignoring cgroup limits. CPU instances share the thread budget.
    instances = sum(group["count"] for group in config.get("instance_group", [])) if device_id is None else 1
    share = max(1, thread_budget() // max(1, instances))
    return int(parameters.get("intra_op_thread_count", "0")) or share


def checked_model_file(
    version_directory: Path, config: dict[str, Any], *, trusted_keys: Path | None = None
) -> Path:
    """The model file, after its checksum and signature are verified.

    Raises:
        ArtefactError: the file is not the published one, or lacks the required signature.
        ServerError: no such file.
    """
    path = version_directory / (config.get("default_model_filename") or "model.onnx")
    if path.is_dir():
        path = path / "model.onnx"
    if not path.exists():
        raise ServerError(f"{config['name']}: no file {path.name} in version {version_directory.name}")
    verify_model_file(path, trusted_keys=trusted_keys)
    return path


def share_threads(providers: Providers, *, num_threads: int, callers: int) -> int:
    """Divide a session's threads among its callers; returns the threads of one caller.

    OpenVINO ignores the session's number of threads and would use all cores, so its provider options set it
    too.
    """
    for name, options in providers:
        if name == OPENVINO:
            options["num_of_threads"] = str(num_threads)
            options["num_streams"] = str(callers)
            # Without this, OpenVINO pins its threads to the first cores, the same ones in every process.
            options.setdefault("load_config", '{"CPU": {"ENABLE_CPU_PINNING": false}}')
    return max(1, num_threads // callers)


def load_failure(config: dict[str, Any], path: Path, reason: str) -> ServerError:
    """The error for a file that ONNX Runtime cannot open; it names no folder of the server."""
    words = " ".join(reason.replace(str(path), path.name).split())
    return ServerError(f"{config['name']}: {path.name} cannot be loaded by ONNX Runtime: {words}")


def execution_providers(
    config: dict[str, Any], *, device_id: int | None, available: Collection[str]
) -> Providers:
    """Execution providers from `optimization.execution_accelerators`, the preferred one first.

    Skips an accelerator that the installed ONNX Runtime lacks, and logs it.

    Raises:
        ServerError: an unknown accelerator, or a GPU instance without the CUDA provider.
    """
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    if device_id is None:
        providers = _cpu_providers(config["name"], accelerators.get("cpu_execution_accelerator", []))
    else:
        providers = _gpu_providers(config, accelerators.get("gpu_execution_accelerator", []), device_id)
    providers.append(("CPUExecutionProvider", {}))
    for name, _ in providers:
        if name == "CUDAExecutionProvider" and name not in available:
            raise ServerError(
                f"{config['name']}: a GPU instance, but the installed onnxruntime has no {name}; install the"
                " serve-gpu extra"
            )
        if name not in available:
            log.warning(
                "%s: the installed onnxruntime has no %s, using the next provider", config["name"], name
            )
    return [provider for provider in providers if provider[0] in available]


def _cpu_providers(name: str, accelerators: list[dict[str, Any]]) -> Providers:
    for accelerator in accelerators:
        if accelerator["name"] != "openvino":
            raise ServerError(f"{name}: unknown Execution Accelerator {accelerator['name']!r}")
        if accelerator.get("parameters"):
            log.warning("%s: parameters of openvino have no effect, as in the native backend", name)
    return [(OPENVINO, {"device_type": "CPU"}) for _ in accelerators]


def _gpu_providers(config: dict[str, Any], accelerators: list[dict[str, Any]], device_id: int) -> Providers:
    device = {"device_id": str(device_id)}
    cuda: dict[str, str] = {}
    providers = []
    for accelerator in accelerators:
        name, parameters = accelerator["name"], accelerator.get("parameters", {})
        if name == "tensorrt":
            # Triton's name of this one differs; ONNX Runtime refuses keys that it does not know.
            renamed = {"max_workspace_size_bytes": "trt_max_workspace_size"}
            named = {renamed.get(key, key): value for key, value in parameters.items()}
            providers.append((TENSORRT, {**device, **named}))
        elif name == "cuda":
            cuda |= parameters
        else:
            raise ServerError(f"{config['name']}: unknown Execution Accelerator {name!r}")
    return [*providers, ("CUDAExecutionProvider", {**device, **cuda})]
