import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fruitstand.artefacts import read_json, sha256_file
from fruitstand.manifest import PreparedData
from fruitstand.repository.tuning import TUNING_NAME, Tuning, read_tuning
from loadtests.perf_analyzer import install_perf_analyzer

pytest.importorskip("optuna", reason="optuna is not installed: pip install 'fruitstand[tune]'")
from fruitstand.errors import FruitstandError, UsageError
from loadtests import tune as tuning
from loadtests.tune import RESULT_NAME, Search, frontier, tune
from serving.triton.backend_directory import BACKENDS_VARIABLE, STUB


@pytest.mark.nightly
def test_a_search_goes_on_where_it_was_and_leaves_the_repository_alone(
    repository: Path, prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trial, the settings in use; a second call adds one. What it proposes can be configured."""
    try:
        install_perf_analyzer()
    except UsageError as exc:
        pytest.skip(str(exc))
    monkeypatch.setattr(tuning, "FINAL_ROUNDS", 1)
    before = {path: sha256_file(path) for path in repository.rglob("config.pbtxt")}
    images, out = prepared.directory / "images" / "Test", tmp_path / "out"
    first = tune(repository, images, out=out, search=Search(p99_ms=10_000, in_flight=8, trials=1, seconds=3))
    assert first["summary"] == read_json(out / RESULT_NAME)["summary"]
    assert not first["summary"]["changed"]
    second = tune(repository, images, out=out, search=Search(p99_ms=10_000, in_flight=8, trials=2, seconds=3))
    trials = second["samples"]["trials"]
    assert trials[0] == first["samples"]["trials"][0]
    assert len(trials) == 2
    assert all(one["images_per_s"] > 0 and one["p99_ms"] > 0 for one in trials)
    assert read_tuning(out / TUNING_NAME) == Tuning(**second["summary"]["tuning"])
    assert {path: sha256_file(path) for path in before} == before
    assert not (repository / TUNING_NAME).exists()


def test_settings_of_the_backend_are_searched_and_the_others_stay() -> None:
    """The first trial is the settings in use, and comes back as they are."""
    in_use = Tuning(infer_queue_delay_us=500, infer_wait_us=2000, max_queue_size=99)
    space, study = tuning._Space(in_use), tuning.optuna.create_study()
    study.enqueue_trial(space.of_use())
    proposed = space.propose(study.ask())
    assert "infer_workers" in proposed
    assert space.tuning(proposed) == in_use
    other = space.tuning(space.propose(study.ask()))
    assert other.infer_queue_delay_us == in_use.infer_queue_delay_us


def test_the_python_stubs_are_not_tuned(
    repository: Path, prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They serve where the C++ backend cannot be built."""
    monkeypatch.setenv(BACKENDS_VARIABLE, STUB)
    with pytest.raises(UsageError, match="needs the C\\+\\+ backend"):
        tune(repository, prepared.directory / "images", out=tmp_path / "out", search=Search(p99_ms=10))


def test_the_frontier_holds_what_nothing_beats() -> None:
    """Neither slower and later, nor as late and slower."""
    trials = [
        {"p99_ms": p99, "images_per_s": rate}
        for p99, rate in ((20, 80), (10, 50), (30, 70), (20, 60), (40, 90))
    ]
    assert [one["p99_ms"] for one in frontier(trials)] == [10, 20, 40]


@pytest.mark.parametrize(("field", "value"), [("p99_ms", 0), ("in_flight", 0), ("trials", -1)])
def test_a_search_for_nothing_is_refused(field: str, value: float) -> None:
    """In one line."""
    with pytest.raises(UsageError, match="allowed above 0"):
        Search(**{"p99_ms": 10.0, field: value})


def test_a_trial_that_cannot_be_measured_is_one_line(
    repository: Path, prepared: PreparedData, tmp_path: Path
) -> None:
    """Optuna would show its traceback."""
    copy = shutil.copytree(repository, tmp_path / "repository")
    (copy / "fruit_resnet" / "1" / "model.int8.onnx").write_bytes(b"torn")
    words = [
        "--images",
        prepared.directory / "images" / "Test",
        "--repository",
        copy,
        "--out",
        tmp_path / "out",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "fruitstand", "tune", *map(str, words), "--p99-ms", "1000", "--trials", "1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "not measured: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.nightly
def test_settings_that_cannot_be_served_end_the_search(
    repository: Path, prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first at once, for they are those in use; later ones after some in a row, not never."""
    try:
        install_perf_analyzer()
    except UsageError as exc:
        pytest.skip(str(exc))
    copy = shutil.copytree(repository, tmp_path / "repository")
    (copy / "fruit_resnet" / "1" / "model.int8.onnx").write_bytes(b"torn")
    images = prepared.directory / "images" / "Test"
    with pytest.raises(FruitstandError, match="current settings cannot be measured"):
        tune(copy, images, out=tmp_path / "out", search=Search(p99_ms=10_000, trials=2, seconds=3))
    out = tmp_path / "later"
    monkeypatch.setattr(tuning, "FINAL_ROUNDS", 1)
    tune(repository, images, out=out, search=Search(p99_ms=10_000, in_flight=8, trials=1, seconds=3))
    monkeypatch.setattr(tuning, "MAX_FAILURES", 2)
    with pytest.raises(FruitstandError, match="2 settings in a row"):
        tune(copy, images, out=out, search=Search(p99_ms=10_000, in_flight=8, trials=2, seconds=3))
