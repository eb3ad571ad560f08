"""The steady load: what counts as its tail, and how its memory's slope is taken."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.load import NothingMeasured
from benchmarks.steady import Arrivals, summarise
from fruitstand.manifest import PreparedData


def test_the_warm_up_counts_for_nothing() -> None:
    """Slow first answers and a growing start are left out; after it 2 MiB an hour are 2 MiB an hour."""
    seen = Arrivals(
        latencies_ms=[900.0] * 50 + [10.0] * 98 + [30.0] * 2,
        due_s=[5.0] * 50 + [50.0] * 100,
        memory=[(0.0, 100.0), *((float(at), 400 + 2 * at / 3600) for at in range(10, 61, 5))],
        refused=3,
        failed=["DEADLINE_EXCEEDED"],
    )
    summary = summarise(seen, alone_p50_ms=5.0, seconds=60)
    assert summary["p50_ms"] == 10
    assert 10 < summary["p99_ms"] <= 30
    assert summary["p99_over_alone_p50"] == pytest.approx(summary["p99_ms"] / 5, abs=0.01)
    assert summary["memory_mib_per_hour"] == pytest.approx(2, abs=0.01)
    assert (summary["requests"], summary["refused"]) == (154, 3)
    assert summary["failed"] == {"DEADLINE_EXCEEDED": 1}


def test_a_load_without_answers_is_no_result() -> None:
    """As from a server that has died."""
    with pytest.raises(NothingMeasured, match="nothing was answered"):
        summarise(Arrivals(refused=9, memory=[(20.0, 1.0)]), alone_p50_ms=5.0, seconds=60)


@pytest.mark.nightly
def test_the_benchmark_runs_end_to_end(repository: Path, prepared: PreparedData, tmp_path: Path) -> None:
    """Every request is answered, and the stopped server leaves nothing in shared memory."""
    out = tmp_path / "steady.json"
    command = [sys.executable, "-m", "benchmarks.steady", "--repository", repository, "--images"]
    command += [prepared.directory / "images", "--minutes", "0.1", "--seconds", "1", "--out", out]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["left_in_shared_memory"] == []
    assert result["refused"] == 0
    assert result["failed"] == {}
    assert result["requests"] > 0
    assert result["memory_mib"]["last"] > 50
