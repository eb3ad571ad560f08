import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fruitstand.machine.threads import THREADS_VARIABLE
from serving.host import build
from serving.triton import doctor
from serving.triton.backend_directory import BACKENDS_VARIABLE


def found(name: str, ports: tuple[int, ...] = ()) -> doctor.Finding:
    """One line of the report."""
    return next(one for one in doctor.examine(ports) if one.name == name)


def test_the_exit_status_is_the_worst_verdict() -> None:
    """Every line has a verdict, each that is not ok has its fix, and one that fails is exit status 1."""
    done = subprocess.run(
        [sys.executable, "-m", "fruitstand", "doctor", "--json"], capture_output=True, text=True, timeout=60
    )
    findings = json.loads(done.stdout)["findings"]
    verdicts = {one["verdict"] for one in findings}
    assert verdicts <= {"ok", "warn", "fail"}
    assert done.returncode == int("fail" in verdicts), done.stderr
    assert all(one["fix"] for one in findings if one["verdict"] != "ok")
    names = {one["name"] for one in findings}
    assert names >= {
        "glibc",
        "Python",
        "tritonserver",
        "Python backend",
        "CPU backend",
        "/dev/shm",
        "CPU",
    }
    assert names >= {"ONNX Runtime", "DALI", "GPU driver", "thread budget", "port 8001"}


def test_a_taken_port_is_named() -> None:
    """A warning: another can be chosen."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert found(f"port {port}", (port,)).verdict == "warn"
    assert found(f"port {port}", (port,)).verdict == "ok"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param("glibc", ("MIN_GLIBC", (99, 0)), id="glibc"),
        pytest.param("Python", ("PYTHONS", ((2, 7),)), id="python"),
        pytest.param("tritonserver", ("PYTRITON_VERSION", "9.9"), id="wheel"),
        pytest.param("/dev/shm", ("MIN_SHARED_MEMORY_MIB", 10**9), id="shared_memory"),
        pytest.param("/dev/shm", ("SHARED_MEMORY", Path("/nowhere")), id="no_shared_memory"),
    ],
)
def test_what_is_missing_fails_with_a_fix(
    name: str, change: tuple[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each need is really compared: with another need the same machine fails."""
    monkeypatch.setattr(doctor, change[0], change[1])
    if name == "/dev/shm":
        monkeypatch.setattr(doctor, "WANTED_SHARED_MEMORY_MIB", 10**10)
    one = found(name)
    assert one.verdict == "fail"
    assert one.fix


def test_the_cpu_backend_needs_a_compiler_only_where_it_is_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an image that carries the library: without it there is something to install."""
    monkeypatch.delenv(BACKENDS_VARIABLE, raising=False)
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setenv("CXX", "no compiler")
    one = found("CPU backend")
    assert one.verdict == "warn"
    assert "install" in one.fix
    build.library_path().touch()
    assert found("CPU backend").verdict == "ok"


def test_a_fail_is_exit_status_1() -> None:
    """As scripts want it."""
    done = subprocess.run(
        [sys.executable, "-m", "fruitstand", "doctor"],
        capture_output=True,
        text=True,
        timeout=60,
        env={THREADS_VARIABLE: "none", "PATH": ""},
    )
    assert done.returncode == 1
    assert "fail  thread budget" in done.stdout
    assert "fix: " in done.stdout
