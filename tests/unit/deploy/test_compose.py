import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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
        "serve": "serve-cpu",
        "loadtest": "client,classify,loadtest",
        "train": "data,train,export",
    }


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
