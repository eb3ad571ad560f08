"""Open an ONNX Runtime session in Python from a Triton model configuration."""

import logging
from pathlib import Path
from typing import Any

import onnxruntime

from fruitstand.errors import ArtefactError, ServerError
from fruitstand.model.session import create_session
from serving.engine import session_plan
from serving.engine.session_plan import (
    Providers,
    checked_model_file,
    intra_op_threads,
    load_failure,
    share_threads,
)
from serving.engine.tensorrt_libraries import load_tensorrt

log = logging.getLogger("fruitstand.backend")


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
        config: the model's configuration, as Triton passes it to a backend.
        device_id: GPU to use; None for a KIND_CPU instance.
        trusted_keys: folder of public keys, one of which must have signed the version.
        num_threads: intra-op threads; None takes the configuration's number, else the thread budget.
        callers: number of threads that call the session concurrently and share its threads.

    Raises:
        ArtefactError: the file is not the published one, or lacks the required signature.
        ServerError: no model file, an unknown key or value, or a GPU instance without CUDA.
    """
    path = checked_model_file(version_directory, config, trusted_keys=trusted_keys)
    options = session_options(config, device_id=device_id)
    providers = execution_providers(config, device_id=device_id)
    all_threads = options.intra_op_num_threads if num_threads is None else num_threads
    options.intra_op_num_threads = share_threads(providers, num_threads=all_threads, callers=callers)
    if device_id is not None:  # the loader does not search pip's folders for NVIDIA's libraries
        onnxruntime.preload_dlls()
    asked = providers[0][0]
    missing = load_tensorrt() if asked == session_plan.TENSORRT else ""
    try:
        session = create_session(path, options, providers)
    except ArtefactError as exc:
        raise load_failure(config, path, str(exc.__cause__)) from exc
    if device_id is not None and "CUDAExecutionProvider" not in session.get_providers():
        raise ServerError(
            f"{config['name']}: a GPU instance, but ONNX Runtime cannot use CUDA; see nvidia-smi and the"
            " serve-gpu extra"
        )
    if session.get_providers()[0] != asked:
        used = session.get_providers()[0]
        log.warning(
            "%s: cannot use %s, using %s: %s",
            config["name"],
            asked,
            used,
            missing or "see ONNX Runtime's log",
        )
    return session


def session_options(config: dict[str, Any], *, device_id: int | None = None) -> onnxruntime.SessionOptions:
    """Session options with the configuration's threads."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = intra_op_threads(config, device_id=device_id)
    return options


def execution_providers(config: dict[str, Any], *, device_id: int | None) -> Providers:
    """The configured execution providers that the installed ONNX Runtime has."""
    available = onnxruntime.get_available_providers()
    return session_plan.execution_providers(config, device_id=device_id, available=available)
