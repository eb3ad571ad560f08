import json
import subprocess
import sys
from pathlib import Path

from benchmarks.limits import CONCURRENCIES, REQUEST_BATCHES, summarise
from fruitstand.manifest import PreparedData


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that is slow for one round is slow for both sides of its ratio."""
    samples = {
        "sequential": [100.0, 50.0, 80.0],
        "overlapped": [90.0, 60.0, 60.0],
        "parallel": [80.0, 40.0, 100.0],
        "served_c64_b1": [90.0, 54.0, 80.0],
        "served_c8_b1": [50.0, 30.0, 50.0],
        "served_c8_b32": [100.0, 60.0, 100.0],
    }
    summary = summarise(samples)
    assert summary["served_over_in_process_c64_b1"] == {"median": 0.9, "min": 0.8, "max": 0.9}
    assert summary["served_over_in_process_b32"]["median"] == 1.0
    assert summary["images_per_s"]["sequential"] == 80.0


def test_the_benchmark_runs_end_to_end(repository: Path, prepared: PreparedData, tmp_path: Path) -> None:
    """Every measurement has a number, and the summary has its keys; what they are is no test's business."""
    out = tmp_path / "limits.json"
    command = [sys.executable, "-m", "benchmarks.limits", "--quick", "--repository", repository]
    command += ["--images", prepared.directory / "images", "--out", out, "--model-name", "tiny"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    samples = result["samples"]["tiny"]
    expected = {f"served_c{c}_b{b}" for c in CONCURRENCIES for b in REQUEST_BATCHES}
    assert set(samples) >= expected | {
        "decode",
        "infer_fp32_ort",
        "infer_int8_ort",
        "sequential",
        "overlapped",
        "parallel",
    }
    # Half a second is too short for a thousand images under way at once; there 0 is an honest answer.
    many = {f"served_c{c}_b{b}" for c in CONCURRENCIES for b in REQUEST_BATCHES if c * b >= 1000}
    assert all(value > 0 for name in set(samples) - many for value in samples[name])
    assert "served_over_in_process_c64_b1" in result["summary"]["tiny"]
    assert "/" not in result["command"].replace("--", "")
