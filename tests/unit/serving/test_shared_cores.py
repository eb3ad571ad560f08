"""Instances that share the cores see each other compute, in other processes too."""

import subprocess
import sys
from pathlib import Path

import pytest

from serving.shared_cores import SCRATCH_VARIABLE, Company


def test_only_the_others_are_company(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only while they compute."""
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path))
    first, second = (Company("model-1", index=index, count=2) for index in range(2))
    elsewhere = Company("model-2", index=1, count=2)
    assert not first.is_present()
    with first.computing():
        assert second.is_present()
        assert not first.is_present()
        assert not elsewhere.is_present()
    assert not second.is_present()


def test_an_instance_that_fails_is_no_company(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error ends its computing too."""
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path))
    first, second = (Company("model", index=index, count=2) for index in range(2))
    with pytest.raises(RuntimeError), first.computing():
        raise RuntimeError
    assert not second.is_present()


def test_another_process_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each instance is one."""
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path))
    here = Company("model", index=0, count=2)
    source = (
        "from serving.shared_cores import Company\n"
        "with Company('model', index=1, count=2).computing():\n"
        "    print('computes', flush=True); input()\n"
        "print('done', flush=True); input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "computes\n"
        assert here.is_present()
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "done\n"
        assert not here.is_present()
        other.communicate("\n")


def test_without_a_scratch_folder_nobody_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a server that was not started by `fruitstand serve`."""
    monkeypatch.delenv(SCRATCH_VARIABLE, raising=False)
    first, second = (Company("model", index=index, count=2) for index in range(2))
    with first.computing():
        assert not second.is_present()
