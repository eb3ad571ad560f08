"""What SECURITY.md promises of the images that are named."""

import re
from pathlib import Path

from serving.attest.exposure_checks import MIN_RELEASE, MIN_SERVER_VERSION

ROOT = Path(__file__).parents[2]
SERVER_VERSIONS = {"26.11": (2, 75, 0)}
"""Which server a release of the container holds: NVIDIA's release notes. A newer minimum adds its line."""


def deployed_files() -> list[Path]:
    """Everything that names an image."""
    return [ROOT / "docker-compose.yml", *sorted((ROOT / "deploy").rglob("*.y*ml"))]


def test_compose_kubernetes_attest_and_the_policy_name_one_triton_release() -> None:
    """An old server is the main risk: a fix came every five weeks in 2026. attest asks for the same."""
    tags = {
        (release, path.name)
        for path in deployed_files()
        for release in re.findall(r"(?:newTag|runtimeVersion): (\d\d\.\d\d)-py3", path.read_text())
    }
    assert tags == {(MIN_RELEASE, "kustomization.yaml"), (MIN_RELEASE, "inference-service.yaml")}
    assert f"\nTRITON_VERSION={MIN_RELEASE}\n" in (ROOT / ".env").read_text()
    assert "tritonserver:${TRITON_VERSION:?}-py3" in (ROOT / "docker-compose.yml").read_text()
    assert SERVER_VERSIONS[MIN_RELEASE] == MIN_SERVER_VERSION
    assert f"releases from {MIN_RELEASE} on" in (ROOT / "SECURITY.md").read_text()
    version = ".".join(map(str, MIN_SERVER_VERSION))
    assert f"Triton is {version} ({MIN_RELEASE}) or newer" in (ROOT / "docs/attest.md").read_text()


def test_compose_listens_on_loopback_only() -> None:
    """The servers in compose ask nobody for a key: none publishes a port, each is told where to listen."""
    text = (ROOT / "docker-compose.yml").read_text()
    assert not re.search(r"^\s+ports:", text, re.MULTILINE)
    addresses = re.findall(r"(?:-address=|-listen-address=|_ADDR: )\"?([\w.]+)", text)
    assert len(addresses) >= 4
    assert set(addresses) == {"127.0.0.1"}
