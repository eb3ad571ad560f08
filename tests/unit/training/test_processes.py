import os
import subprocess
import sys
from pathlib import Path

import pytest

from fruitstand.artefacts import read_json
from fruitstand.manifest import PreparedData
from fruitstand.runs import read_run

DEADLINE_S = 240
SETTINGS = ("batch_size=24", "input_size=32", "small_share=0", "ema_decay=0.9", "lr=0.02")


def run(launcher: tuple[str, ...], *arguments: str) -> None:
    """Run `fruitstand train` as a user does, with one thread a process."""
    command = [sys.executable, "-m", *launcher, "train", "--model", "resnet10t", "--epochs", "2", *arguments]
    for setting in SETTINGS:
        command += ["--set", setting]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.nightly
def test_two_processes_end_with_the_same_weights(prepared: PreparedData, tmp_path: Path) -> None:
    """And the run that they leave is valid."""
    run(("fruitstand",), "--data", str(prepared.directory), "--out", str(tmp_path / "own"), "--devices", "2")
    first, second = read_json(tmp_path / "own" / "meta.json")["processes"]["weights_sha256"]
    assert first == second
    assert len(read_run(tmp_path / "own").meta["epochs"]) == 2
    assert not list(tmp_path.glob("*/.tmp-*"))


@pytest.mark.nightly
def test_two_processes_agree_whoever_starts_them(prepared: PreparedData, tmp_path: Path) -> None:
    """--devices 2 and torchrun: the same weights in both processes and both runs."""
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fruitstand")
    data = str(prepared.directory)
    run(("fruitstand",), "--data", data, "--out", str(tmp_path / "own"), "--devices", "2")
    run(torchrun, "--data", data, "--out", str(tmp_path / "torchrun"))
    metas = [read_json(tmp_path / name / "meta.json") for name in ("own", "torchrun")]
    for meta in metas:
        first, second = meta["processes"]["weights_sha256"]
        assert first == second
    assert metas[0]["weights_sha256"] == metas[1]["weights_sha256"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(
            ("--devices", "2", "--set", "batch_size=15"),
            "batch_size",
            id="unequal_shares",
            marks=pytest.mark.nightly,  # both processes start before they can tell
        ),
        pytest.param(("--devices", "0"), "--devices", id="no_device"),
    ],
)
def test_devices_that_cannot_be_are_refused(
    prepared: PreparedData, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    """With one line, exit 2, and nothing left behind."""
    command = [sys.executable, "-m", "fruitstand", "train", "--data", str(prepared.directory)]
    command += ["--out", str(tmp_path / "run"), "--model", "resnet10t", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
