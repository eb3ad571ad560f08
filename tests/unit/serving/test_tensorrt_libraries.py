import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving.engine.tensorrt_libraries import needed_major

SCRIPT = """
import sys
from pathlib import Path
from serving.engine.tensorrt_libraries import load_tensorrt
print(load_tensorrt(Path(sys.argv[1])))
"""
PACKAGE = """
import ctypes, pathlib
for library in sorted(pathlib.Path(__file__).parent.glob("*.so*")):
    ctypes.CDLL(str(library))
"""


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that names what it was linked with, as ONNX Runtime's does."""
    path = tmp_path_factory.mktemp("capi") / "libonnxruntime_providers_tensorrt.so"
    path.write_bytes(b"\x7fELF...\0libdl.so.2\0libnvinfer.so.10\0libnvonnxparser.so.10\0libcudart.so.13\0")
    return path


def installed(folder: Path, major: int) -> Path:
    """A folder of packages with real shared libraries under the names of a TensorRT."""
    package = folder / "tensorrt_libs"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PACKAGE)
    for name in ("libnvinfer", "libnvonnxparser"):
        library = f"{name}.so.{major}"
        command = [
            "gcc",
            "-shared",
            "-x",
            "c",
            "/dev/null",
            f"-Wl,-soname,{library}",
            "-o",
            package / library,
        ]
        subprocess.run(command, check=True, timeout=60)
    return folder


def loaded(provider: Path, packages: Path) -> str:
    """What a process says that looks for TensorRT in a folder of packages."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(packages)!r}){SCRIPT}", provider]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_the_version_comes_from_what_onnx_runtime_is_linked_with(provider: Path, tmp_path: Path) -> None:
    """Without its library for TensorRT there is none."""
    assert needed_major(provider) == 10
    assert needed_major(tmp_path / "nowhere.so") is None


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to make shared libraries")
def test_tensorrt_is_found_where_pip_puts_it(provider: Path, tmp_path: Path) -> None:
    """Under its own name, which is how ONNX Runtime asks for it."""
    assert loaded(provider, installed(tmp_path / "packages", 10)) == ""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to make shared libraries")
def test_another_tensorrt_is_not_taken_for_the_one_that_is_needed(provider: Path, tmp_path: Path) -> None:
    """TensorRT 11 beside an ONNX Runtime that wants 10: the line says which to install."""
    line = loaded(provider, installed(tmp_path / "packages", 11))
    assert line.startswith("TensorRT 10 is missing")
    assert "tensorrt extra" in line


def test_without_tensorrt_the_line_says_what_to_install(provider: Path, tmp_path: Path) -> None:
    """As on a machine that has only CUDA."""
    assert loaded(provider, tmp_path).startswith("TensorRT 10 is missing (libnvinfer.so.10")
    assert "serve-gpu extra" in loaded(tmp_path / "nowhere.so", tmp_path)
