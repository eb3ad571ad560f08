"""What is recorded of a machine."""

from pathlib import Path

import pytest

from fruitstand.machine.provenance import hardware


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'NVIDIA H200, 143771 MiB, 580.159.04'", ["NVIDIA H200, 143771 MiB, 580.159.04"]),
        ("echo 'no driver' >&2; exit 9", None),
        (None, None),
    ],
    ids=["one", "no_driver", "no_tool"],
)
def test_gpus_stand_there_if_there_are_any(
    script: str | None, expected: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nvidia-smi says them; without it, or without its driver, nothing is said."""
    if script is not None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = hardware()
    assert found.get("gpus") == expected
    assert {"cpu", "num_cores", "memory_gib", "machine"} <= set(found)
