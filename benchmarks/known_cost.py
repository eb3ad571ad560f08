"""What KNOWN and SET_SIZE cost: the served file beside the same file without them, in turns.

    python -m benchmarks.known_cost --repository model_repository --out known-cost.json    # quiet machine

One thread on one core. Both files run next to each other in each round, in changing order, so what disturbs
the machine disturbs both. CPU time leaves out what other processes take; wall time does not. The result has
the median of the rounds' ratios with its 95 % interval (bootstrap).
"""

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import onnx
import typer

from export.onnx.metadata import write_model
from fruitstand.artefacts import write_json
from fruitstand.contract import KNOWN, PIXELS, PROBABILITIES, SET_SIZE
from fruitstand.errors import UsageError
from fruitstand.machine.provenance import provenance
from fruitstand.model.session import open_session
from fruitstand.repository.versions import read_version, serving_state
from fruitstand.stages import command_line

NUM_WARM_UP = 20
NUM_RESAMPLES = 2000


def measure(
    repository: Annotated[Path, typer.Option(help="Its served version has KNOWN.")],
    out: Annotated[Path, typer.Option(help="JSON file for the result.")],
    seconds: Annotated[float, typer.Option(min=1, help="Time for all rounds.")] = 150.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in each run.")] = 8,
) -> None:
    """Time the served version's CPU file and record it."""
    state = serving_state(repository)
    if state is None or not (version := read_version(repository, state.version)).serve.known:
        raise UsageError(f"{repository}: serves no version with KNOWN")
    file, engine = version.serve.cpu_model, version.serve.cpu_engine
    described = provenance()  # before the pinning, which hides the other cores
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    pixels = np.random.default_rng(0).integers(
        0, 256, (batch_size, *version.preprocessing.input_size, 3), dtype=np.uint8
    )
    with TemporaryDirectory() as scratch:
        plain = Path(scratch, "plain.onnx")
        write_model(without_known(version.directory / file), plain)
        sessions = [open_session(path, engine, num_threads=1) for path in (version.directory / file, plain)]
        outputs = [PROBABILITIES, KNOWN, SET_SIZE], [PROBABILITIES]
        seconds_used: list[np.ndarray] = []
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            one = np.zeros((2, 2))
            for at in (0, 1) if len(seconds_used) % 2 else (1, 0):
                started = time.perf_counter(), time.process_time()
                sessions[at].run(outputs[at], {PIXELS: pixels})
                one[at] = time.perf_counter() - started[0], time.process_time() - started[1]
            seconds_used.append(one)
    rounds = np.array(seconds_used[NUM_WARM_UP:])
    result = {
        **described,
        "settings": {"batch_size": batch_size, "engine": engine, "file": file, "num_threads": 1},
        "summary": {
            "model_name": version.record.model_name,
            "num_rounds": len(rounds),
            "images_per_s": float(batch_size / np.median(rounds[:, 0, 0])),
            "wall_time_with_over_without": ratio(rounds[:, :, 0]),
            "cpu_time_with_over_without": ratio(rounds[:, :, 1]),
        },
    }
    write_json(out, result)
    print(out)


def without_known(path: Path) -> onnx.ModelProto:
    """The model of a file as it was before KNOWN and SET_SIZE were added."""
    proto = onnx.load(path)
    for kept in (proto.graph.node, proto.graph.output, proto.graph.initializer):
        for one in [one for one in kept if one.name.startswith("known/") or one.name in (KNOWN, SET_SIZE)]:
            kept.remove(one)
    return proto


def ratio(rounds: np.ndarray) -> dict[str, float]:
    """Of (N, 2) seconds with and without: the median of the N ratios, its 95 % interval, the quartiles."""
    ratios = rounds[:, 0] / rounds[:, 1]
    drawn = np.random.default_rng(0).integers(0, len(ratios), (NUM_RESAMPLES, len(ratios)))
    low, high = np.quantile([np.median(ratios[one]) for one in drawn], (0.025, 0.975))
    lower, upper = np.quantile(ratios, (0.25, 0.75))
    return {
        "median": float(np.median(ratios)),
        "interval_low": float(low),
        "interval_high": float(high),
        "quartile_low": float(lower),
        "quartile_high": float(upper),
    }


if __name__ == "__main__":
    command_line(measure)
