"""The first service of docker-compose.yml: check that this machine can run the stack; print each problem.

    docker compose run --rm preflight        # before any large image is pulled

All other services wait for it. It uses the standard library only, runs in the base image of the others as the
owner of the clone, and requests no GPU from Docker.
"""

import os
import platform
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from fruitstand.contract import FRUIT_CLASSIFIER
from fruitstand.errors import FruitstandError
from fruitstand.repository.model_names import repository_names
from serving.triton import doctor
from serving.triton.doctor import OK, WARN, check_ports, gpu_driver

ROOT = Path("/app")
PROMETHEUS_USER = 65534, 65534
TOOLKIT = ("nvidia-container-runtime-hook", "nvidia-cdi-hook", "nvidia-container-runtime")
HOST_PROGRAMS = Path("/host/usr/bin")
MEMORY = Path("/var/tmp")
"""A volume that remembers earlier starts: at a later `up` the stack itself uses the ports."""
COMMON_PORTS = {
    "GATEWAY_PORT": 8001,
    "HTTP_PORT": 8000,
    "PROMETHEUS_PORT": 9090,
    "GRAFANA_PORT": 3000,
}
FIXED_PORTS = {"gpu": (8002, 8010, 8011, 9901), "cpu": (8002, 8010, 8011, 8012, 8020, 8021, 9102, 9901)}
"""Ports between the containers: Triton's gRPC, REST and metrics, Envoy's and the drift watch's metrics."""


def problems(
    profile: str, root: Path, environment: Mapping[str, str], *, started_before: bool = False
) -> Iterator[str]:
    """Yield every reason why the stack cannot run here, with a fix."""
    if platform.machine() != "x86_64":
        yield f"{platform.machine()} is not supported: the images are built for x86-64"
    if profile == "gpu":
        yield from gpu_problems()
    if not started_before:
        yield from port_problems(profile, environment)
    yield from unreadable(root, environment)
    yield from name_problems(root)


def name_problems(root: Path) -> Iterator[str]:
    """Check that the repository has the names that docker-compose.yml loads and asks."""
    try:
        found = repository_names(root / "model_repository").classifier
    except FruitstandError as exc:
        yield str(exc)
        return
    if found != FRUIT_CLASSIFIER:
        yield (
            f"model_repository serves {found}, and this stack {FRUIT_CLASSIFIER}: export without --name, or"
            " serve it with 'fruitstand serve --gateway'"
        )


def gpu_problems() -> Iterator[str]:
    """Check that a recent driver is there; skipped in WSL, where Windows' driver is not visible."""
    if "microsoft" in platform.release().lower():
        return
    if not doctor.DRIVER.is_file():
        yield "no NVIDIA driver on this machine. Without a GPU: COMPOSE_PROFILES=cpu docker compose up"
        return
    driver = gpu_driver()
    if driver.verdict != OK:
        yield f"GPU driver {driver.found}: {driver.fix} (to try: PREFLIGHT=warn docker compose up)"


def port_problems(profile: str, environment: Mapping[str, str]) -> Iterator[str]:
    """Check that the ports are free."""
    chosen = {int(environment.get(name) or default): name for name, default in COMMON_PORTS.items()}
    for one in check_ports([*chosen, *FIXED_PORTS[profile]]):
        if one.verdict == OK:
            continue
        port = int(one.name.removeprefix("port "))
        other = (
            f", or choose another: {chosen[port]}={port + 10000} docker compose up" if port in chosen else ""
        )
        yield f"port {port} is taken: stop the process that listens there (ss -ltnp 'sport = :{port}'){other}"


def unreadable(root: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Check that the servers can read the clone; after a clone with umask 077 they cannot."""
    servers = int(environment.get("MODELS_UID") or 1000), int(environment.get("MODELS_GID") or 1000)
    readers = {"model_repository": servers, "deploy": servers, "monitoring": PROMETHEUS_USER}
    found = {name: _first_closed(root / name, *user) for name, user in readers.items()}
    if closed := [(name, path) for name, path in found.items() if path is not None]:
        yield (
            f"{closed[0][1].relative_to(root)}: user {readers[closed[0][0]][0]} cannot read it:"
            f" chmod -R a+rX {' '.join(name for name, _ in closed)}"
        )
    if environment.get("ACCESS") and (key := _first_closed(root / "access", *servers)):
        yield (
            f"{key.name} in ACCESS: user {servers[0]} of the gateway cannot read it:"
            f" MODELS_UID={key.stat().st_uid} docker compose up"
        )


def _first_closed(path: Path, uid: int, gid: int) -> Path | None:
    inside = (Path(folder) / name for folder, names, files in os.walk(path) for name in (*names, *files))
    return next((one for one in (path, *inside) if not _may_read(one, uid, gid)), None)


def _may_read(path: Path, uid: int, gid: int) -> bool:
    """Whether the mode allows reading; our containers have no capability to bypass it, not even as root."""
    status = path.stat()
    shift = 6 if status.st_uid == uid else 3 if status.st_gid == gid else 0
    wanted = 0o5 if stat.S_ISDIR(status.st_mode) else 0o4
    return status.st_mode >> shift & wanted == wanted


def notes(profile: str, root: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Yield notes that are no problems."""
    driver = gpu_driver()
    if profile == "cpu" and doctor.DRIVER.is_file():
        yield f"there is an NVIDIA GPU (driver {driver.found}); it is not used because the profile is cpu"
    if profile == "gpu":
        yield f"GPU driver {driver.found}; Triton {environment.get('TRITON_VERSION', '')} serves"
        if not any((HOST_PROGRAMS / name).exists() for name in TOOLKIT):
            yield (
                "NVIDIA's container toolkit is not in /usr/bin. If Docker now says 'could not select device"
                " driver': install the package nvidia-container-toolkit, then"
                " sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
            )
    if not any((root / "model_repository").glob("fruit_resnet/[1-9]*/manifest.json")):
        yield "no model is published yet: training a small one on generated fruit first, 1 to 4 minutes"


def main(profile: str) -> int:
    """Print problems and notes; returns the exit status."""
    passed = MEMORY / f"passed-{profile}"
    found = list(problems(profile, ROOT, os.environ, started_before=passed.exists()))
    warn_only = os.environ.get("PREFLIGHT") == WARN
    for line in found:
        print(f"preflight: {'warning' if warn_only else 'error'}: {line}", flush=True)
    if found and not warn_only:
        return 1
    for line in notes(profile, ROOT, os.environ):
        print(f"preflight: {line}", flush=True)
    if not passed.exists():  # touching it would fail if another user created it
        passed.touch()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
