"""Load TensorRT's libraries from the package `tensorrt-cu13-libs` or the system's library path.

`onnxruntime.preload_dlls` loads CUDA and cuDNN from pip packages, but not TensorRT.
"""

import contextlib
import ctypes
import importlib
import re
from pathlib import Path

import onnxruntime

PROVIDER = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
PACKAGE = "tensorrt_libs"


def needed_major(provider: Path = PROVIDER) -> int | None:
    """Major version of TensorRT that ONNX Runtime was linked with; None if it has no TensorRT provider."""
    if not provider.is_file():
        return None
    found = re.search(rb"\0libnvinfer\.so\.(\d+)\0", provider.read_bytes())
    return int(found[1]) if found else None


def load_tensorrt(provider: Path = PROVIDER) -> str:
    """Load TensorRT, so that ONNX Runtime finds the libraries by name.

    Returns:
        What is missing and how to install it; empty if TensorRT was loaded.
    """
    major = needed_major(provider)
    if major is None:
        return "the installed onnxruntime has no TensorRT; install the serve-gpu extra"
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module(PACKAGE)  # importing it loads its libraries
    try:
        for library in ("libnvinfer", "libnvonnxparser"):
            ctypes.CDLL(f"{library}.so.{major}")
    except OSError as exc:
        return f"TensorRT {major} is missing ({exc}); install the tensorrt extra"
    return ""
