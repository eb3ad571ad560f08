"""What Compose's first and last service say: what hinders the stack, and what answers where."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy import preflight
from deploy.ready import PORTS, report
from serving.triton import doctor

ROOT = Path(__file__).parents[3]


def driver_file(tmp_path: Path, version: str) -> Path:
    """What the kernel module writes."""
    path = tmp_path / "version"
    path.write_text(
        f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build  (a@b)\n"
    )
    return path


@pytest.mark.parametrize(
    ("version", "line"),
    [
        pytest.param(
            None, "no NVIDIA driver on this machine. Without a GPU: COMPOSE_PROFILES=cpu", id="none"
        ),
        pytest.param("570.195.03", "570.195.03, older than 580", id="old"),
        pytest.param("580.95.05", None, id="oldest"),
        pytest.param("610.43.02", None, id="cuda_13.3"),
    ],
)
def test_preflight_judges_the_driver(
    version: str | None, line: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line where it is missing or too old, none where it will do."""
    path = tmp_path / "none" if version is None else driver_file(tmp_path, version)
    monkeypatch.setattr(doctor, "DRIVER", path)
    found = list(preflight.gpu_problems())
    assert len(found) == (line is not None)
    assert all(line in one for one in found if line is not None)


def test_preflight_names_a_taken_port_and_how_to_choose_another() -> None:
    """Once the stack was started the ports are its own."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        environment = {"HTTP_PORT": str(taken.getsockname()[1])}
        (line,) = (
            one for one in preflight.port_problems("cpu", environment) if environment["HTTP_PORT"] in one
        )
        assert "HTTP_PORT=" in line
        again = preflight.problems("cpu", ROOT, environment, started_before=True)
        assert not [one for one in again if "taken" in one]


def test_preflight_finds_what_the_servers_may_not_read(tmp_path: Path) -> None:
    """As after a clone with umask 077: one line with the file and the command; keys are not opened to all."""
    for name in ("model_repository/fruit_resnet", "deploy", "monitoring/rules", "access"):
        (tmp_path / name).mkdir(parents=True)
    config = tmp_path / "model_repository/fruit_resnet/config.pbtxt"
    rules, key = tmp_path / "monitoring/rules/slo.yml", tmp_path / "access/server.key"
    for path in (config, rules, key):
        path.touch()
    other = {"MODELS_UID": str(os.getuid() + 1), "MODELS_GID": str(os.getgid() + 1), "ACCESS": "./keys"}
    assert list(preflight.unreadable(tmp_path, other)) == []
    for path in (config, rules, key):
        path.chmod(0o600)
    files, keys = preflight.unreadable(tmp_path, other)
    assert files.startswith("model_repository/fruit_resnet/config.pbtxt: ")
    assert files.endswith("chmod -R a+rX model_repository monitoring")
    assert keys.endswith(f"MODELS_UID={os.getuid()} docker compose up")
    own = {"MODELS_UID": str(os.getuid()), "MODELS_GID": str(os.getgid())}
    (files,) = preflight.unreadable(tmp_path, own)
    assert files.endswith("chmod -R a+rX monitoring")


@pytest.mark.parametrize(
    ("folders", "line"),
    [
        pytest.param([], None, id="nothing_published"),
        pytest.param(["fruit_classifier"], None, id="the_default"),
        pytest.param(["birds_classifier"], "serves birds_classifier, and this stack", id="another_name"),
        pytest.param(["birds_classifier", "fruit_classifier"], "a repository of its own", id="two"),
    ],
)
def test_preflight_refuses_a_repository_of_another_name(
    folders: list[str], line: str | None, tmp_path: Path
) -> None:
    """Triton would be told to load models that are not there, after a training that nobody wanted."""
    for name in folders:
        (tmp_path / "model_repository" / name).mkdir(parents=True)
    found = list(preflight.name_problems(tmp_path))
    assert len(found) == (line is not None)
    assert all(line in one for one in found if line is not None)


def test_preflight_needs_nothing_that_is_installed() -> None:
    """It runs in the plain Python image, with these folders mounted into it."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    mounted = {
        one.split(":")[-2].removeprefix("/app/") for one in services["preflight"]["volumes"] if ":" in one
    }
    assert {"fruitstand", "serving", "deploy", "model_repository", "monitoring", "access"} <= mounted
    code = "import sys, deploy.preflight; print(sorted({n.split('.')[0] for n in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    foreign = set(json.loads(done.stdout.replace("'", '"'))) - sys.stdlib_module_names
    assert foreign <= {"deploy", "fruitstand", "serving", "__main__"}


def test_ready_says_what_answers_where(repository: Path) -> None:
    """With the ports that were chosen, and what to type next."""
    lines = "\n".join(report(repository, {**PORTS, "GATEWAY_PORT": 7001}))
    assert "version 1 of fruit_classifier" in lines
    assert "fruitstand classify IMAGE --url 127.0.0.1:7001" in lines
    assert "curl --data-binary @IMAGE http://127.0.0.1:8000/classify" in lines
    assert "https://127.0.0.1:8000/" in "\n".join(report(repository, PORTS, scheme="https"))
