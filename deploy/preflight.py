"""The first service of docker-compose.yml: can this machine run the stack? One line for each reason why not.

    docker compose run --rm preflight        before any large image is pulled

Nothing else starts before this has passed. It needs the standard library alone, runs in the image that the
others are built on, as the owner of the clone, and asks Docker for no GPU.
"""

import os
import platform
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from serving.triton import doctor
from serving.triton.doctor import OK, WARN, check_ports, gpu_driver

ROOT = Path("/app")
PROMETHEUS_USER = 65534, 65534
TOOLKIT = ("nvidia-container-runtime-hook", "nvidia-cdi-hook", "nvidia-container-runtime")
HOST_PROGRAMS = Path("/host/usr/bin")
MEMORY = Path("/var/tmp")
"""A volume of this container alone: at a later `up` the ports are taken by the stack itself."""
COMMON_PORTS = {
    "GATEWAY_PORT": 8001,
    "HTTP_PORT": 8000,
    "PROMETHEUS_PORT": 9090,
    "GRAFANA_PORT": 3000,
}
FIXED_PORTS = {"gpu": (8002, 8010, 8011, 9901), "cpu": (8002, 8010, 8011, 8012, 8020, 8021, 9102, 9901)}
"""Between the containers: Triton's gRPC, REST and metrics, Envoy's and the drift watch's metrics."""


def problems(
    profile: str, root: Path, environment: Mapping[str, str], *, started_before: bool = False
) -> Iterator[str]:
    """Every reason why the stack cannot run here, each with what to do.

    Args:
        profile: gpu or cpu.
        root: of the clone.
        environment: the variables that docker-compose.yml hands on.
        started_before: this stack ran already: ports that are taken are its own.
    """
    if platform.machine() != "x86_64":
        yield f"{platform.machine()} is no x86-64: the images are built for that only"
    if profile == "gpu":
        yield from gpu_problems()
    if not started_before:
        yield from port_problems(profile, environment)
    yield from unreadable(root, environment)


def gpu_problems() -> Iterator[str]:
    """No driver, or one that is too old. In WSL the driver is Windows' and cannot be seen from here."""
    if "microsoft" in platform.release().lower():
        return
    if not doctor.DRIVER.is_file():
        yield "no NVIDIA driver on this machine. Without a GPU: COMPOSE_PROFILES=cpu docker compose up"
        return
    driver = gpu_driver()
    if driver.verdict != OK:
        yield f"GPU driver {driver.found}: {driver.fix} (to try: PREFLIGHT=warn docker compose up)"


def port_problems(profile: str, environment: Mapping[str, str]) -> Iterator[str]:
    """Ports that something else listens on."""
    chosen = {int(environment.get(name) or default): name for name, default in COMMON_PORTS.items()}
    for one in check_ports([*chosen, *FIXED_PORTS[profile]]):
        if one.verdict == OK:
            continue
        port = int(one.name.removeprefix("port "))
        other = (
            f", or choose another: {chosen[port]}={port + 10000} docker compose up" if port in chosen else ""
        )
        yield f"port {port} is taken: stop what listens there (ss -ltnp 'sport = :{port}'){other}"


def unreadable(root: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Files of the clone that a server may not read, as after a clone with umask 077."""
    servers = int(environment.get("MODELS_UID") or 1000), int(environment.get("MODELS_GID") or 1000)
    readers = {"model_repository": servers, "deploy": servers, "monitoring": PROMETHEUS_USER}
    found = {name: _first_closed(root / name, *user) for name, user in readers.items()}
    if closed := [(name, path) for name, path in found.items() if path is not None]:
        yield (
            f"{closed[0][1].relative_to(root)}: user {readers[closed[0][0]][0]} may not read it:"
            f" chmod -R a+rX {' '.join(name for name, _ in closed)}"
        )
    if environment.get("ACCESS") and (key := _first_closed(root / "access", *servers)):
        yield (
            f"{key.name} in ACCESS: user {servers[0]} of the gateway may not read it:"
            f" MODELS_UID={key.stat().st_uid} docker compose up"
        )


def _first_closed(path: Path, uid: int, gid: int) -> Path | None:
    inside = (Path(folder) / name for folder, names, files in os.walk(path) for name in (*names, *files))
    return next((one for one in (path, *inside) if not _may_read(one, uid, gid)), None)


def _may_read(path: Path, uid: int, gid: int) -> bool:
    """By the mode alone: no container of ours overrides it, root's neither."""
    status = path.stat()
    shift = 6 if status.st_uid == uid else 3 if status.st_gid == gid else 0
    wanted = 0o5 if stat.S_ISDIR(status.st_mode) else 0o4
    return status.st_mode >> shift & wanted == wanted


def notes(profile: str, root: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """What a person should know before the start."""
    driver = gpu_driver()
    if profile == "cpu" and doctor.DRIVER.is_file():
        yield f"there is an NVIDIA GPU (driver {driver.found}); the CPU serves because the profile is cpu"
    if profile == "gpu":
        yield f"GPU driver {driver.found}; Triton {environment.get('TRITON_VERSION', '')} serves"
        if not any((HOST_PROGRAMS / name).exists() for name in TOOLKIT):
            yield (
                "NVIDIA's container toolkit is not in /usr/bin. If Docker now says 'could not select device"
                " driver': install the package nvidia-container-toolkit, then"
                " sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
            )
    if not any((root / "model_repository").glob("fruit_resnet/[1-9]*/manifest.json")):
        yield "no model is published yet: a small one is trained on painted fruit first, 1 to 4 minutes"


def main(profile: str) -> int:
    """Print what was found; the exit status."""
    passed = MEMORY / f"passed-{profile}"
    found = list(problems(profile, ROOT, os.environ, started_before=passed.exists()))
    warn_only = os.environ.get("PREFLIGHT") == WARN
    for line in found:
        print(f"preflight: {'warning' if warn_only else 'error'}: {line}", flush=True)
    if found and not warn_only:
        return 1
    for line in notes(profile, ROOT, os.environ):
        print(f"preflight: {line}", flush=True)
    if not passed.exists():  # the clone may have had another owner then
        passed.touch()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
