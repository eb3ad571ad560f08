"""What SECURITY.md promises of the images that are named."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
MINIMUM = tuple(map(int, re.findall(r"TRITON_VERSION=(\d+)\.(\d+)", (ROOT / ".env").read_text())[0]))
"""The oldest Triton release that fixes what is known; .env is the one place for it."""


def deployed_files() -> list[Path]:
    """Everything that names an image."""
    return [ROOT / "docker-compose.yml", *sorted((ROOT / "deploy").rglob("*.y*ml"))]


def test_no_triton_image_is_older_than_the_newest_bulletin() -> None:
    """A pinned and old server is the main risk: a fix came every five weeks in 2026."""
    tags = [
        (int(year), int(month), path.name)
        for path in deployed_files()
        for year, month in re.findall(r"(?:newTag|runtimeVersion): (\d\d)\.(\d\d)-py3", path.read_text())
    ]
    assert len(tags) >= 2, "no image of Triton is named any more: this test looks in the wrong place"
    assert "tritonserver:${TRITON_VERSION:?}-py3" in (ROOT / "docker-compose.yml").read_text()
    assert [tag for tag in tags if tag[:2] < MINIMUM] == []


def test_the_policy_names_the_same_minimum() -> None:
    """One number, in the document and in the test."""
    year, month = MINIMUM
    assert f"{year}.{month:02d}" in (ROOT / "SECURITY.md").read_text()


def test_compose_listens_on_loopback_only() -> None:
    """The servers in compose ask nobody for a key: none publishes a port, each is told where to listen."""
    text = (ROOT / "docker-compose.yml").read_text()
    assert not re.search(r"^\s+ports:", text, re.MULTILINE)
    addresses = re.findall(r"(?:-address=|-listen-address=|_ADDR: )\"?([\w.]+)", text)
    assert len(addresses) >= 4
    assert set(addresses) == {"127.0.0.1"}
