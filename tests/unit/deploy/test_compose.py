import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from deploy import preflight
from deploy.ready import PORTS
from fruitstand.contract import FRUIT_CLASSIFIER, FRUIT_RESNET, IMAGE, IMAGE_DECODE
from fruitstand.images.synthetic import canary_image
from serving.triton.embedded import CONTROL_HEADER, RESTRICTED_GRPC

ROOT = Path(__file__).parents[3]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
ENVIRONMENT = dict(line.split("=") for line in (ROOT / ".env").read_text().splitlines() if line[0] != "#")
VARIABLE = re.compile(r"\$\{(\w+)(?::[-?]([^${}]*))?\}")


def resolved(text: object) -> str:
    """A command with the defaults of its variables, as .env and the file give them; `:+` is left as it is."""
    text = " ".join(text) if isinstance(text, list) else str(text)
    while (after := VARIABLE.sub(lambda found: ENVIRONMENT.get(found[1], found[2] or ""), text)) != text:
        text = after
    return text


def before(name: str) -> Iterator[str]:
    """Every service that has to be done or healthy before this one starts."""
    for one in SERVICES[name].get("depends_on", {}):
        yield one
        yield from before(one)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name: str) -> None:
    """A root filesystem that cannot be written, no capability, a memory limit, bounded logs; not root.

    Those that write into the clone start as root with two capabilities, to become its owner.
    """
    service = SERVICES[name]
    if service["user"] == "0:0":
        assert service["cap_add"] == ["SETUID", "SETGID"]
        assert "exec setpriv --reuid=" in service["entrypoint"][2]
        assert service["environment"]["OWNER"]
    else:
        assert "cap_add" not in service
        assert not service["user"].startswith(("0", "root"))
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["deploy"]["resources"]["limits"]["memory"]
    assert service["logging"]["options"]["max-size"]
    assert service["network_mode"] == "host"


def test_the_profiles_are_those_that_are_documented() -> None:
    """And `docker compose up` alone is the one with a GPU."""
    assert {one for service in SERVICES.values() for one in service["profiles"]} == {
        "gpu", "cpu", "loadtest", "profile", "train", "train-cpu", "models",
    }  # fmt: skip
    assert ENVIRONMENT["COMPOSE_PROFILES"] == "gpu"


def test_every_image_has_a_pinned_tag_or_is_built_here() -> None:
    """NVIDIA's have their full names, and one variable for both."""
    images = {name: resolved(one["image"]) for name, one in SERVICES.items() if "build" not in one}
    assert all(re.search(r":[\w.-]+$", image) for image in images.values())
    version = ENVIRONMENT["TRITON_VERSION"]
    assert images["triton"] == f"nvcr.io/nvidia/tritonserver:{version}-py3"
    assert images["profile"] == f"nvcr.io/nvidia/tritonserver:{version}-py3-sdk"


def test_nothing_secret_is_needed() -> None:
    """Compose refuses a file of secrets that is not there; the only password has a default."""
    assert "secrets" not in COMPOSE
    assert not any("secrets" in service for service in SERVICES.values())
    assert SERVICES["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"] == "${GRAFANA_PASSWORD:-admin}"


@pytest.mark.parametrize("profile", ["gpu", "cpu"])
def test_preflight_comes_before_everything_and_ready_after(profile: str) -> None:
    """Preflight asks for no GPU: its line comes before Docker's own."""
    suffix = "" if profile == "gpu" else "-cpu"
    first, last = f"preflight{suffix}", f"ready{suffix}"
    here = {name for name, service in SERVICES.items() if service["profiles"] == [profile]}
    assert all(first in before(name) for name in here - {first})
    assert {f"bootstrap{suffix}", f"triton{suffix}", f"gateway{suffix}", f"attest{suffix}"} <= set(
        before(last)
    )
    assert all(set(before(name)) <= here for name in here)
    assert "reservations" not in SERVICES[first]["deploy"]["resources"]
    assert "build" not in SERVICES[first]


def test_whoever_needs_a_gpu_asks_for_one() -> None:
    """The server, its first model and training; nothing in the profiles that run anywhere."""
    asking = {name for name, one in SERVICES.items() if "reservations" in one["deploy"]["resources"]}
    assert asking == {"triton", "bootstrap", "train"}


def test_triton_is_started_as_the_embedded_server_is() -> None:
    """The same models, control closed by a key, pings allowed, time for TensorRT's engine."""
    triton = SERVICES["triton"]
    command = resolved(triton["command"])
    for name in (IMAGE_DECODE, FRUIT_RESNET, FRUIT_CLASSIFIER):
        assert f"--load-model={name} " in command
    key = f"{CONTROL_HEADER}=$$(cat /control/key)"
    assert f"--grpc-restricted-protocol={RESTRICTED_GRPC}:{key} " in command
    assert f"--http-restricted-api={RESTRICTED_GRPC}:{key} " in command
    assert "--strict-readiness=false" in command
    assert "--grpc-http2-max-ping-strikes=0" in command
    configuration = re.search(r"--model-config-name=(\S+)", command)[1]
    assert (ROOT / "model_repository" / FRUIT_RESNET / "configs" / f"{configuration}.pbtxt").is_file()
    assert f"/v2/models/{FRUIT_CLASSIFIER}/infer" in triton["healthcheck"]["test"][-1]
    assert int(triton["healthcheck"]["start_period"].rstrip("s")) >= 600
    drain_s = int(re.search(r"--exit-timeout-secs=(\d+)", command)[1])
    assert int(triton["stop_grace_period"].rstrip("s")) > drain_s >= 30


def test_the_servers_of_the_cpu_read_the_key_that_bootstrap_writes() -> None:
    """So does whoever promotes; perf_analyzer sends it."""
    for name in ("triton-cpu", "triton-cpu-2", "models"):
        assert SERVICES[name]["environment"]["FRUITSTAND_CONTROL"] == "/control/control.json"
    for name in ("triton", "triton-cpu", "models", "profile"):
        assert "control:/control:ro" in SERVICES[name]["volumes"]
    assert "control:/control" in SERVICES["bootstrap"]["volumes"]


@pytest.mark.parametrize("name", ["bootstrap", "bootstrap-cpu"])
def test_bootstrap_names_the_ports_of_the_servers(name: str) -> None:
    """In the file that `models promote` reads."""
    servers = ["triton"] if name == "bootstrap" else ["triton-cpu", "triton-cpu-2"]
    known = [ports(SERVICES[one]["command"]) for one in servers]
    assert SERVICES[name]["command"][1:] == [f"{one['grpc']}:{one['metrics']}" for one in known]


def test_the_profiler_gets_its_input_from_a_service() -> None:
    """And measures the server past the gateway, which hides its statistics."""
    profile = SERVICES["profile"]
    assert profile["depends_on"] == {"profile-input": {"condition": "service_completed_successfully"}}
    assert "--input-data /profile/input.json" in profile["command"][2]
    assert '"/profile/input.json"' in SERVICES["profile-input"]["command"][0]
    assert "profile:/profile" in SERVICES["profile-input"]["volumes"]


def test_grafana_finds_prometheus() -> None:
    """Its provisioning takes the address from a variable: without one it would ask nobody."""
    wanted = (ROOT / "monitoring/grafana/provisioning/datasources/prometheus.yml").read_text()
    (name,) = re.findall(r"url: \$\{(\w+)\}", wanted)
    listen = re.search(r"--web.listen-address=(\S+)", resolved(SERVICES["prometheus"]["command"]))[1]
    assert resolved(SERVICES["grafana"]["environment"][name]) == f"http://{listen}"


def test_every_build_target_is_a_stage_of_the_dockerfile() -> None:
    """And no image but train's installs what brings torch."""
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))
    assert {s["build"]["target"] for s in SERVICES.values() if "build" in s} <= stages
    builds = re.findall(
        r"AS build-(\w+)\n(?:RUN apt-get.*\n.*\n)?RUN (install-pinned --requirement .*)", text
    )
    extras = {name: ",".join(re.findall(r"--extra (\S+)", command)) for name, command in builds}
    assert extras == {
        "gateway": "gateway",
        "serve": "serve-cpu,drift",
        "loadtest": "client,classify,loadtest",
        "train": "data,train,export",
    }


def ports(command: object) -> dict[str, str]:
    """What a server's arguments say, over what Triton takes by itself."""
    given = dict(re.findall(r"--(grpc|http|metrics)-port[ =](\d+)", resolved(command)))
    return {"grpc": "8001", "http": "8000", "metrics": "8002"} | given


@pytest.mark.parametrize(
    ("servers", "gateway", "targets"),
    [
        pytest.param(("triton",), "gateway", "gpu", id="gpu"),
        pytest.param(("triton-cpu", "triton-cpu-2"), "gateway-cpu", "cpu", id="cpu"),
    ],
)
def test_the_gateway_and_prometheus_know_every_server(
    servers: tuple[str, ...], gateway: str, targets: str
) -> None:
    """All share the machine's ports: one that is mistaken would send calls or questions nowhere."""
    known = [ports(SERVICES[name]["command"]) for name in servers]
    taken = [port for one in known for port in one.values()]
    assert len({*taken, "8000", "8001", "9901"}) == len(taken) + 3
    assert re.findall(r"--replica (\d+)", SERVICES[gateway]["command"]) == [one["grpc"] for one in known]
    folder = ROOT / "monitoring" / "targets" / targets
    (scraped,) = yaml.safe_load((folder / "triton.yml").read_text())
    assert scraped["targets"] == [f"127.0.0.1:{one['metrics']}" for one in known]
    assert yaml.safe_load((folder / "envoy.yml").read_text()) == [{"targets": ["127.0.0.1:9901"]}]
    prometheus = SERVICES[gateway.replace("gateway", "prometheus")]
    assert f"./monitoring/targets/{targets}:/etc/prometheus/targets:ro" in prometheus["volumes"]
    for name, one in zip(servers, known, strict=True):
        assert one["http"] in resolved(SERVICES[name]["healthcheck"]["test"])
    assert "--http-port ${HTTP_PORT:-8000}" in SERVICES[gateway]["command"]
    checked = {*preflight.COMMON_PORTS.values(), *preflight.FIXED_PORTS[targets]}
    drift = yaml.safe_load((ROOT / "monitoring/targets/cpu/drift.yml").read_text())[0]["targets"]
    also = [one.rpartition(":")[2] for one in drift] if targets == "cpu" else []
    assert checked == {int(port) for port in [*taken, *also, "8000", "8001", "9901", "9090", "3000"]}


def test_every_port_that_can_be_chosen_is_known_to_preflight_and_ready() -> None:
    """With the same default everywhere."""
    text = (ROOT / "docker-compose.yml").read_text()
    defaults = set(re.findall(r"\$\{(\w+_PORT):-(\d+)\}", text))
    assert {name: int(port) for name, port in defaults} == preflight.COMMON_PORTS == PORTS
    assert len(defaults) == len(PORTS)


def test_the_health_checks_ask_for_an_answer_to_a_real_image() -> None:
    """The canary's, as the REST endpoint takes it."""
    (tensor,) = json.loads((ROOT / "deploy" / "probe.json").read_text())["inputs"]
    assert bytes(tensor["data"]) == canary_image()
    assert (tensor["name"], tensor["datatype"]) == (IMAGE, "UINT8")
    assert tensor["shape"] == [1, len(tensor["data"])]


class Answers(BaseHTTPRequestHandler):
    """Answers everything with 200."""

    def do_GET(self) -> None:
        """Also what a health check posts."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.end_headers()

    do_POST = do_GET


@pytest.mark.parametrize("name", ["triton-cpu", "triton-cpu-2", "drift", "gateway", "ready"])
def test_the_health_checks_in_python_go_past_a_proxy(name: str, tmp_path: Path) -> None:
    """Docker puts the proxy of its configuration into every container; nothing listens at this one."""
    program, _, code, target = SERVICES[name]["healthcheck"]["test"][1:]
    assert program == "python"
    probe = tmp_path / "probe.json"
    probe.write_bytes((ROOT / "deploy" / "probe.json").read_bytes())
    code = code.replace("/probe.json", str(probe))
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = str(server.server_port)
        healthy = port if target.isdecimal() or target.startswith("$") else f"http://127.0.0.1:{port}/"
        env = {
            "PATH": os.environ["PATH"],
            "http_proxy": "http://127.0.0.1:9",
            "HTTP_PROXY": "http://127.0.0.1:9",
        }
        subprocess.run([sys.executable, "-c", code, healthy], env=env, check=True, timeout=30)
        server.shutdown()
    done = subprocess.run([sys.executable, "-c", code, healthy], env=env, capture_output=True, timeout=30)
    assert done.returncode != 0


@pytest.mark.parametrize(
    "profiles", ["gpu", "cpu", "loadtest", "profile", "train", "models", "cpu,loadtest,train-cpu"]
)
def test_compose_itself_accepts_every_profile(profiles: str) -> None:
    """`docker compose config`, with a folder of certificates and without."""
    program = os.environ.get("COMPOSE") or shutil.which("docker-compose")
    if program is None:
        pytest.skip("needs Compose v2 as docker-compose, or named in COMPOSE")
    traces = {"FRUITSTAND_TRACES": "http://127.0.0.1:4318/v1/traces"}
    for access in ({}, {"ACCESS": "./secrets", **traces}):
        done = subprocess.run(
            [program, "--file", ROOT / "docker-compose.yml", "config", "--format", "json"],
            env={"PATH": os.environ["PATH"], "COMPOSE_PROFILES": profiles, **access},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        services = json.loads(done.stdout)["services"]
        wanted = {n for n, s in SERVICES.items() if set(s["profiles"]) & set(profiles.split(","))}
        assert set(services) == wanted
        for gateway in {"gateway", "gateway-cpu"} & wanted:
            assert ("--access" in services[gateway]["command"]) == bool(access)
            assert services[gateway]["environment"]["FRUITSTAND_TRACES"] == access.get(
                "FRUITSTAND_TRACES", ""
            )
        if "triton" in wanted:
            tracing = [
                word for word in services["triton"]["command"][2].split() if word.startswith("--trace-config")
            ]
            assert len(tracing) == (4 if access else 0)


def test_secrets_are_never_committed() -> None:
    """Certificates and keys of the gateway lie in a folder that git does not see."""
    assert "secrets/" in (ROOT / ".gitignore").read_text().splitlines()
