import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.accuracy import file_name
from benchmarks.results_page import render

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks" / "results"
TRAINING = ("--set", "input_size=32", "--set", "batch_size=4")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the result of a measurement of a minute, made by the command."""
    from training.data.painter import paint_dataset

    folder = tmp_path_factory.mktemp("accuracy")
    paint_dataset(folder, num_classes=2, images_per_class=24, seed=1)
    command = [sys.executable, "-m", "benchmarks.accuracy", "--source", str(folder / "generated")]
    command += ["--model", "resnet10t", "--epochs", "1", "--work", str(folder / "work")]
    command += ["--results", str(folder / "results"), "--", *TRAINING]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
    assert again.returncode == 2
    assert "an earlier measurement is there" in again.stderr.splitlines()[-1]
    return folder / "results"


@pytest.mark.nightly
def test_one_command_prepares_trains_and_evaluates(measured: Path) -> None:
    """What it was, how good, beside its baselines, how long each step took."""
    (path,) = measured.iterdir()
    assert re.fullmatch(
        r"accuracy_generated-classic-resnet10t_[a-z0-9.-]+_\d{8}_[0-9a-f]{7}\.json", path.name
    )
    result = json.loads(path.read_text())
    assert set(result) == {"hardware", "date", "commit", "command", "settings", "samples", "summary"}
    assert list(result["samples"]["wall_s"]) == ["prepare", "train", "evaluate"]
    assert min(result["samples"]["wall_s"].values()) > 0
    summary = result["summary"]
    assert (summary["num_classes"], summary["num_epochs"]) == (2, 1)
    assert summary["nearest_neighbour_top1"] == 1.0
    assert summary["majority_top1"] == 0.5
    assert 0 <= summary["top1"] <= 1
    assert result["settings"]["train"]["input_size"] == 32, "what follows -- goes to training"
    assert shlex.split(result["command"])[-5:] == ["--", *TRAINING]
    assert str(Path.home()) not in path.read_text()


@pytest.mark.nightly
def test_the_page_shows_a_results_numbers_and_command(measured: Path) -> None:
    """A row and a command for each file."""
    (path,) = measured.iterdir()
    result = json.loads(path.read_text())
    page = render(measured)
    (row,) = [line for line in page.splitlines() if path.name in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    summary = result["summary"]
    assert cells[:3] == ["generated", "classic, validation by film", "resnet10t"]
    assert cells[4].startswith(f"{summary['top1']:.4f} (")
    assert cells[5:7] == ["1.0000", "0.5000"]
    assert result["commit"][:7] in row
    assert result["date"][:10] in row
    assert result["command"] in page
    head = next(line for line in page.splitlines() if line.startswith("| data"))
    assert head.count("|") == row.count("|")


def test_the_committed_page_is_what_the_results_render() -> None:
    """`python -m benchmarks.results_page` after each new result."""
    assert (ROOT / "docs" / "results.md").read_text() == render(RESULTS)


def test_committed_results_are_named_by_what_they_hold() -> None:
    """Name and content cannot drift apart."""
    for path in RESULTS.glob("accuracy_*.json"):
        assert file_name(json.loads(path.read_text())) == path.name
