"""`fruitstand doctor`: check whether this machine can serve; each finding names a fix."""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import socket
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fruitstand.errors import ServerError, UsageError
from fruitstand.machine.threads import cgroup_cpus, thread_budget
from serving.host import build
from serving.triton.backend_directory import BACKENDS_VARIABLE, DEFAULT_BACKENDS, STUB
from serving.triton.child_process import forbids_programs

OK, WARN, FAIL = "ok", "warn", "fail"
MIN_GLIBC = (2, 35)
PYTHONS = ((3, 11), (3, 12))
PYTRITON_VERSION = "0.7.0"
MIN_SHARED_MEMORY_MIB, WANTED_SHARED_MEMORY_MIB = 64, 256
DEFAULT_PORTS = {"--http-port": 8000, "--grpc-port": 8001, "--metrics-port": 8002}
SHARED_MEMORY = Path("/dev/shm")
DRIVER = Path("/proc/driver/nvidia/version")
MIN_DRIVER, WANTED_DRIVER = 580, 610
"""NVIDIA driver branches for CUDA 13, which Triton 26.11's container and the locked torch are built on.

Source:
    CUDA Compatibility, "Minor Version Compatibility": CUDA 13.x runs on 580 and newer. CUDA 13.3 release
    notes: it ships with driver 610. Data-centre GPUs may run older drivers with the container's
    forward-compatibility package.
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    verdict: str
    """ok, warn or fail."""
    found: str
    fix: str = ""
    """What to do; empty when the verdict is ok."""


def examine(ports: Iterable[int] = DEFAULT_PORTS.values()) -> list[Finding]:
    """Check everything that serving needs."""
    checks: tuple[Callable[[], Finding], ...] = (
        _glibc, _python, _pytriton, _stub, _own_backend, _shared_memory, _temporary_folder, _cpu,
        _engines, _dali, gpu_driver, _threads,
    )  # fmt: skip
    return [*(check() for check in checks), *check_ports(ports)]


def _glibc() -> Finding:
    name, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2]) if version else (0, 0)
    good = name == "glibc" and numbers >= MIN_GLIBC
    fix = "" if good else "use Debian 12, Ubuntu 22.04, RHEL 10 or newer, or NVIDIA's container"
    return Finding("glibc", OK if good else FAIL, f"{name or 'none'} {version}", fix)


def _python() -> Finding:
    here = sys.version_info[:2]
    wanted = " or ".join(f"{major}.{minor}" for major, minor in PYTHONS)
    good = here in PYTHONS
    return Finding(
        "Python", OK if good else FAIL, platform.python_version(), "" if good else f"use Python {wanted}"
    )


def _pytriton() -> Finding:
    try:
        version = importlib.metadata.version("nvidia-pytriton")
    except importlib.metadata.PackageNotFoundError:
        return Finding("tritonserver", FAIL, "not installed", "pip install 'fruitstand[serve-cpu]'")
    if version != PYTRITON_VERSION:
        fix = f"pip install nvidia-pytriton=={PYTRITON_VERSION}: only this version is tested"
        return Finding("tritonserver", FAIL, f"nvidia-pytriton {version}", fix)
    return Finding("tritonserver", OK, f"nvidia-pytriton {version}")


def _stub() -> Finding:
    """The Python backend's stub for this Python, and the libpython that it loads."""
    wanted = f"{sys.version_info.major}.{sys.version_info.minor}"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for path in importlib.metadata.files("nvidia-pytriton") or []:
            if path.parts[-2:] == (wanted, "triton_python_backend_stub"):
                library = sysconfig.get_config_var("INSTSONAME") or ""
                if not library.startswith("libpython") or ".so" not in library:
                    fix = "use a Python built with --enable-shared, such as Debian's or uv's"
                    return Finding("Python backend", WARN, "this Python has no shared library", fix)
                return Finding("Python backend", OK, f"stub for {wanted}, {library}")
    fix = "use Python 3.11 or 3.12 and install the serve-cpu extra"
    return Finding("Python backend", FAIL, f"no stub for Python {wanted}", fix)


def _own_backend() -> Finding:
    """The backend on a CPU: our own, which is built on this machine, or the slower Python stubs."""
    name = "CPU backend"
    if (os.environ.get(BACKENDS_VARIABLE) or DEFAULT_BACKENDS) == STUB:
        return Finding(name, OK, f"Python stubs, as set by {BACKENDS_VARIABLE}")
    try:
        path = build.library_path()
    except ServerError as exc:
        return Finding(name, WARN, "the slower Python stubs", str(exc))
    if path.is_file():
        return Finding(name, OK, f"our own, {path}")
    reason = build.missing()
    if reason is None:
        return Finding(name, OK, f"our own, built by {build.compiler()} into {path.parent}")
    found, _, fix = reason.partition(": ")
    return Finding(name, WARN, f"the slower Python stubs: {found}", fix)


def _shared_memory() -> Finding:
    try:
        free_mib = shutil.disk_usage(SHARED_MEMORY).free // 2**20
    except OSError:
        return Finding("/dev/shm", FAIL, "missing", "mount a tmpfs there")
    verdict = (
        OK if free_mib >= WANTED_SHARED_MEMORY_MIB else WARN if free_mib >= MIN_SHARED_MEMORY_MIB else FAIL
    )
    fix = "" if verdict == OK else "free some, or give the container more: docker run --shm-size 1g"
    return Finding("/dev/shm", verdict, f"{free_mib} MiB free", fix)


def _temporary_folder() -> Finding:
    """The server loads its backends from the temporary folder."""
    folder = Path(tempfile.gettempdir())
    if forbids_programs(folder):
        fix = "set TMPDIR to a folder on another file system"
        return Finding("temporary folder", FAIL, f"{folder} is mounted noexec", fix)
    return Finding("temporary folder", OK, str(folder))


def _cpu() -> Finding:
    """CPU features that make int8 fast."""
    flags = _cpu_flags()
    found = [
        name for name, flag in (("AVX2", "avx2"), ("VNNI", "vnni"), ("AMX", "amx_int8")) if flag in flags
    ]
    if "AMX" in found or "VNNI" in found:
        return Finding("CPU", OK, ", ".join(found))
    fix = "int8 is not much faster here; it is on Intel from Cascade Lake (VNNI) and AMD from Zen 4"
    return Finding("CPU", WARN, ", ".join(found) or "none of AVX2, VNNI, AMX", fix)


def _cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        if line.startswith("flags"):
            flags = set(line.partition(":")[2].split())
            return flags | ({"vnni"} if flags & {"avx512_vnni", "avx_vnni"} else set())
    return set()


def _engines() -> Finding:
    if importlib.util.find_spec("onnxruntime") is None:
        return Finding("ONNX Runtime", FAIL, "not installed", "pip install 'fruitstand[serve-cpu]'")
    import onnxruntime

    providers = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    found = f"{onnxruntime.__version__}: {', '.join(providers)}"
    if {"OpenVINO", "CUDA"} & set(providers):
        return Finding("ONNX Runtime", OK, found)
    fix = "no fast engine: install onnxruntime-openvino (serve-cpu) or onnxruntime-gpu (serve-gpu)"
    return Finding("ONNX Runtime", WARN, found, fix)


def _dali() -> Finding:
    for package in ("nvidia-dali-cuda130", "nvidia-dali-cuda120"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return Finding("DALI", OK, f"{package} {importlib.metadata.version(package)}")
    return Finding("DALI", FAIL, "not installed", "pip install 'fruitstand[serve-cpu]'")


def gpu_driver() -> Finding:
    """The NVIDIA driver, compared with the oldest that Triton's container supports; none is fine on a CPU."""
    if not DRIVER.is_file():
        return Finding("GPU driver", OK, "none: the CPU serves; --config-name gpu needs one")
    text = DRIVER.read_text().splitlines()[0].partition(":")[2].strip()
    number = re.search(r"\b(\d{3,4})\.\d+(?:\.\d+)?\b", text)
    if number is None:
        return Finding("GPU driver", WARN, f"no version in {text!r}", f"install {MIN_DRIVER} or newer")
    if int(number[1]) >= MIN_DRIVER:
        return Finding("GPU driver", OK, number[0])
    fix = (
        f"install driver {MIN_DRIVER} or newer (CUDA 13.3 ships with {WANTED_DRIVER}); only data-centre GPUs"
        " run Triton's container with an older one"
    )
    return Finding("GPU driver", WARN, f"{number[0]}, older than {MIN_DRIVER}", fix)


def _threads() -> Finding:
    try:
        budget = thread_budget()
    except UsageError as exc:
        return Finding("thread budget", FAIL, str(exc), "set it to a whole number, or not at all")
    cores, quota = len(os.sched_getaffinity(0)), cgroup_cpus()
    found = f"{budget} (affinity {cores}, cgroup quota {'none' if quota == float('inf') else f'{quota:g}'})"
    if budget > min(cores, quota) + 1:
        return Finding("thread budget", WARN, found, "more threads than cores: unset FRUITSTAND_THREADS")
    return Finding("thread budget", OK, found)


def check_ports(ports: Iterable[int]) -> Iterator[Finding]:
    """Check that each of these loopback ports is free."""
    flags = {port: flag for flag, port in DEFAULT_PORTS.items()}
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                probe.listen(1)
            except OSError as exc:
                fix = f"stop what listens there, or choose another port with {flags.get(port, 'its flag')}"
                yield Finding(f"port {port}", WARN, str(exc.strerror).lower(), fix)
            else:
                yield Finding(f"port {port}", OK, "free")
