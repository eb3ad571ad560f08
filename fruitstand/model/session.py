"""Open ONNX Runtime sessions, and run them in batches.

onnxruntime and torch are imported inside the functions, so importing this module is cheap.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fruitstand.contract import CPU_ENGINES, MAX_BATCH_SIZE, PIXELS, PROBABILITIES
from fruitstand.errors import ArtefactError

if TYPE_CHECKING:
    import onnxruntime

GPU_ENGINE = "cuda"
_PROVIDERS = {
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
    GPU_ENGINE: "CUDAExecutionProvider",
}


def create_session(
    model: Path,
    options: "onnxruntime.SessionOptions",
    providers: Sequence[str | tuple[str, dict[str, str]]] = ("CPUExecutionProvider",),
) -> "onnxruntime.InferenceSession":
    """Load an ONNX file.

    The providers have ONNX Runtime's names, the preferred one first.

    Raises:
        ArtefactError: ONNX Runtime cannot load the file; includes its reason.
    """
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(model, options, providers=list(providers))
    except Exception as exc:  # ONNX Runtime raises one class per status code, with no common base
        reason = " ".join(str(exc).split())
        raise ArtefactError(f"{model}: cannot be loaded by ONNX Runtime: {reason}") from exc


def open_session(
    model: Path, engine: str = "cpu", *, num_threads: int = 0, can_spin: bool = False
) -> "onnxruntime.InferenceSession":
    """Load an ONNX file on one of `CPU_ENGINES` or on `GPU_ENGINE`.

    With 0 threads ONNX Runtime chooses. Idle threads may spin with `can_spin`: sessions that run in turns
    slow each other by it.

    Raises:
        ArtefactError: ONNX Runtime cannot load the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = num_threads
    if not can_spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return create_session(model, options, [_PROVIDERS[engine]])


def installed_engines() -> list[str]:
    """The `CPU_ENGINES` that this machine's ONNX Runtime has."""
    return [engine for engine in CPU_ENGINES if has_engine(engine)]


def has_engine(engine: str) -> bool:
    """Whether this machine has the hardware for an engine and its ONNX Runtime supports it."""
    import onnxruntime

    if engine == GPU_ENGINE:
        import torch

        if not torch.cuda.is_available():
            return False
    return _PROVIDERS[engine] in onnxruntime.get_available_providers()


def run_batches(
    session: "onnxruntime.InferenceSession",
    pixels_nhwc_u8: npt.NDArray[np.uint8],
    output: str = PROBABILITIES,
) -> npt.NDArray[np.float32]:
    """Run a served model on any number of images, in batches of at most `MAX_BATCH_SIZE`.

    Returns:
        (N, C) float32 probabilities, or another output.

    Raises:
        ArtefactError: the model fails to run.
    """
    parts = np.array_split(pixels_nhwc_u8, -(-len(pixels_nhwc_u8) // MAX_BATCH_SIZE))
    try:
        return np.concatenate([session.run([output], {PIXELS: part})[0] for part in parts])
    except Exception as exc:  # no common base class, as in create_session
        raise ArtefactError(f"the model cannot be run by ONNX Runtime: {' '.join(str(exc).split())}") from exc
