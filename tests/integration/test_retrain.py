import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fruitstand.manifest import PreparedData
from fruitstand.repository.versions import serving_state
from fruitstand.sampling.samples import REFERENCE_NAME, read_samples, write_samples
from serving.triton.embedded import EmbeddedServer
from training.data.prepare import prepare_data

TRAINING = ("--epochs", "3", "--set", "batch_size=8", "--set", "lr=0.02")


def retrain(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The loop, once, as make calls it."""
    return subprocess.run(
        [sys.executable, "-m", "deploy.retrain", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=560,  # below the limit of one test; 280 s were too few on a machine with other work
        check=False,
    )


@pytest.fixture
def own(repository: Path, tmp_path: Path) -> Path:
    """A repository that a test may change."""
    return Path(shutil.copytree(repository, tmp_path / "model_repository"))


def test_nothing_happens_while_the_data_is_known_and_nothing_drifted(
    own: Path, prepared: PreparedData, tmp_path: Path
) -> None:
    """The samples are the reference's own."""
    reference, _, labels = read_samples(own / "fruit_resnet" / "1" / REFERENCE_NAME)
    if len(reference) < 50:
        done = retrain("--data", prepared.directory, "--repository", own, "--runs", tmp_path / "runs")
    else:
        write_samples(tmp_path / "samples" / "1.npz", reference, version=1, labels=labels)
        done = retrain(
            "--data", prepared.directory, "--repository", own, "--runs", tmp_path / "runs",
            "--samples", tmp_path / "samples",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_data_with_another_class_is_refused_before_anything_is_trained(own: Path, tmp_path: Path) -> None:
    """One label file serves all versions of a repository."""
    data = tmp_path / "data"
    prepare_data(source="generated", out=data, num_classes=5, images_per_class=8)
    done = retrain("--data", data, "--repository", own, "--runs", tmp_path / "runs")
    assert done.returncode == 1
    assert "serves other classes in version 1" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.nightly
def test_new_data_becomes_the_served_version_on_a_running_server(own: Path, tmp_path: Path) -> None:
    """Trained, gated, published, tried by the canary, promoted."""
    data = tmp_path / "data"
    prepare_data(source="generated", out=data, num_classes=4, images_per_class=44)
    with EmbeddedServer(own, log_path=tmp_path / "triton.log") as server:
        done = retrain(
            "--data", data, "--repository", own, "--runs", tmp_path / "runs", "--url", server.url, *TRAINING,
            "--max-slowdown", 100,  # how busy this machine is decides nothing here
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the data is new" in done.stdout
    state = serving_state(own)
    assert state is not None
    assert (state.version, state.previous) == (2, 1)
    (verdict,) = (tmp_path / "runs").glob("*/canary.json")
    assert json.loads(verdict.read_text())["new_top1"] >= json.loads(verdict.read_text())["old_top1"] - 0.005
