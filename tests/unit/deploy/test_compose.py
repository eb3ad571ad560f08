import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fruitstand.contract import IMAGE
from fruitstand.sample_images import canary_image

ROOT = Path(__file__).parents[3]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name: str) -> None:
    """Not root, a root filesystem that cannot be written, no capability, a memory limit, bounded logs."""
    service = SERVICES[name]
    assert service["user"].split(":")[0] not in ("0", "root")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["deploy"]["resources"]["limits"]["memory"]
    assert service["logging"]["options"]["max-size"]


def test_the_profiles_are_those_that_are_documented() -> None:
    """And `docker compose up` alone is the one with a GPU."""
    assert {one for service in SERVICES.values() for one in service["profiles"]} == {
        "gpu", "cpu", "loadtest", "profile", "train",
    }  # fmt: skip
    assert (ROOT / ".env").read_text() == "COMPOSE_PROFILES=gpu\n"


def test_every_image_has_a_pinned_tag_or_is_built_here() -> None:
    """Triton's is 26.07 or newer, which fixes what was known."""
    for name, service in SERVICES.items():
        if "build" not in service:
            assert re.search(r":-[\w.:-]+}$", service["image"]), name
    (year, month) = re.search(r"tritonserver:(\d+)\.(\d+)-py3}", SERVICES["triton"]["image"]).groups()
    assert (int(year), int(month)) >= (26, 7)


def test_every_build_target_is_a_stage_of_the_dockerfile() -> None:
    """And no image but train's installs what brings torch."""
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))
    assert {s["build"]["target"] for s in SERVICES.values() if "build" in s} <= stages
    extras = dict(re.findall(r"AS build-(\w+)\n.*?'\.\[([\w,-]+)\]'", text, re.DOTALL))
    assert extras == {
        "gateway": "gateway",
        "serve": "serve-cpu,drift",
        "loadtest": "client,classify,loadtest",
        "train": "data,train,export",
    }


def ports(command: object) -> dict[str, str]:
    """What a server's arguments say, over what Triton takes by itself."""
    text = " ".join(command) if isinstance(command, list) else str(command)
    given = dict(re.findall(r"--(grpc|http|metrics)-port[ =](\d+)", text))
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
    assert len({*taken, "8001", "9901"}) == len(taken) + 2
    assert re.findall(r"--replica (\d+)", SERVICES[gateway]["command"]) == [one["grpc"] for one in known]
    folder = ROOT / "monitoring" / "targets" / targets
    (scraped,) = yaml.safe_load((folder / "triton.yml").read_text())
    assert scraped["targets"] == [f"127.0.0.1:{one['metrics']}" for one in known]
    assert yaml.safe_load((folder / "envoy.yml").read_text()) == [{"targets": ["127.0.0.1:9901"]}]
    prometheus = SERVICES[gateway.replace("gateway", "prometheus")]
    assert f"./monitoring/targets/{targets}:/etc/prometheus/targets:ro" in prometheus["volumes"]
    for name, one in zip(servers, known, strict=True):
        assert one["http"] in " ".join(SERVICES[name]["healthcheck"]["test"])


def test_the_health_checks_ask_for_an_answer_to_a_real_image() -> None:
    """The canary's, as the REST endpoint takes it."""
    (tensor,) = json.loads((ROOT / "deploy" / "probe.json").read_text())["inputs"]
    assert bytes(tensor["data"]) == canary_image()
    assert (tensor["name"], tensor["datatype"]) == (IMAGE, "UINT8")
    assert tensor["shape"] == [1, len(tensor["data"])]


@pytest.mark.parametrize("profiles", ["gpu", "cpu", "loadtest", "profile", "train", "cpu,loadtest,train"])
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
        assert done.returncode == 0, done.stderr
        services = json.loads(done.stdout)["services"]
        wanted = {n for n, s in SERVICES.items() if set(s["profiles"]) & set(profiles.split(","))}
        assert set(services) == wanted
        for gateway in {"gateway", "gateway-cpu"} & wanted:
            assert ("--access" in services[gateway]["command"]) == bool(access)
            assert services[gateway]["environment"]["FRUITSTAND_TRACES"] == access.get(
                "FRUITSTAND_TRACES", ""
            )
        if "triton" in wanted:
            tracing = [word for word in services["triton"]["command"] if word.startswith("--trace-config")]
            assert len(tracing) == (4 if access else 0)


def test_secrets_are_files_that_are_never_committed() -> None:
    """Nothing secret in the environment."""
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    assert "secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    environment = json.dumps([service.get("environment", {}) for service in SERVICES.values()])
    assert not re.search(r'PASSWORD"', environment)


def test_the_bill_of_materials_names_what_is_installed() -> None:
    """CycloneDX, with package URLs."""
    done = subprocess.run(
        [sys.executable, "-m", "fruitstand.sbom"], capture_output=True, text=True, timeout=60, check=True
    )
    document = json.loads(done.stdout)
    assert document["bomFormat"] == "CycloneDX"
    purls = {one["purl"] for one in document["components"]}
    assert any(purl.startswith("pkg:pypi/numpy@") for purl in purls)
