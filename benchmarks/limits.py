r"""The limits of this machine, and how near the server comes: decode, inference, both in process, and served.

    python -m benchmarks.limits --repository runs/demo/model_repository --images runs/demo/data/images/Test \
        --out benchmarks/results/limits_HARDWARE_DATE_COMMIT.json
    python -m benchmarks.limits ... --quick      # a minute: does it run?
    python -m benchmarks.limits ... --config-name gpu
    python -m benchmarks.limits ... --backends host,stub    # both, in turns: served_..., stub_...

Everything is measured in turn, `--rounds` times over, so that what else the machine does hits all alike; the
summary holds medians of ratios within a round, with the smallest and the largest.
"""

import asyncio
import contextlib
import functools
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.in_process import BATCH, LOOPS, Measure, in_process, read_images, served_version
from benchmarks.load import NothingMeasured, Target, closed_loop, ratio
from fruitstand.artefacts import write_json
from fruitstand.contract import CPU_CONFIG
from fruitstand.machine.provenance import provenance
from fruitstand.machine.threads import thread_budget
from fruitstand.stages import command_line, console, served
from serving.triton.backend_directory import BACKENDS_VARIABLE, HOST

CONCURRENCIES = (1, 8, 64, 128)
REQUEST_BATCHES = (1, 8, 32)
MAX_PROCESSES = 4
"""That send; one on a small machine. One alone sends a few thousand requests a second."""


def main(
    repository: Annotated[Path, typer.Option(help="Model repository with a served version.")],
    images: Annotated[Path, typer.Option(help="Folder with images.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    model_name: Annotated[str, typer.Option(help="Name of the model in the result.")] = "model",
    config_name: Annotated[str, typer.Option(help="Of the server: cpu, gpu, gpu-trt.")] = CPU_CONFIG,
    backends: Annotated[str, typer.Option(help="Of ours, with commas; ratios are of the first.")] = HOST,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured.")] = 5,
    seconds: Annotated[float, typer.Option(help="For each measurement.")] = 5.0,
    quick: Annotated[bool, typer.Option("--quick", help="One short round.")] = False,
) -> None:
    """Measure and write the result."""
    if quick:
        rounds, seconds = 1, 0.5
    files = read_images(images)
    num_processes = min(MAX_PROCESSES, max(1, thread_budget() // 4))
    settings = {
        "config_name": config_name,
        "backends": backends,
        "rounds": rounds,
        "seconds": seconds,
        "batch": BATCH,
        "load_processes": num_processes,
        "num_images": len(files),
        "quick": quick,
    }
    result: dict[str, Any] = {**provenance(), "settings": settings}
    measures = in_process(repository, served_version(repository), files, config_name)
    samples: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(TemporaryDirectory(prefix="fruitstand-limits-"))
        for name in backends.split(","):
            log, environment = Path(scratch, f"{name}.log"), {BACKENDS_VARIABLE: name}
            url = stack.enter_context(
                served(repository, log=log, config_name=config_name, environment=environment)
            )
            load = stack.enter_context(Senders(url, [file.tobytes() for file in files], num_processes))
            measures |= load.measures("served" if name == backends.split(",")[0] else name)
        for number in range(rounds):
            for name, measure in measures.items():
                samples.setdefault(name, []).append(round(measure(seconds), 1))
                console.print(f"{number + 1}/{rounds} {name}: {samples[name][-1]} images/s")
            # After each round: a run that is cut off keeps those it has.
            result["samples"], result["summary"] = {model_name: samples}, {model_name: summarise(samples)}
            write_json(out, result)
    print(out)


def summarise(samples: dict[str, list[float]]) -> dict[str, Any]:
    """Ratios of the served to the best in-process loop, and all medians."""
    best = [max(rates) for rates in zip(*(samples[loop] for loop in LOOPS), strict=True)]
    return {
        "images_per_s": {name: statistics.median(values) for name, values in samples.items()},
        "served_over_in_process_c64_b1": ratio(samples["served_c64_b1"], best),
        "served_over_in_process_c8_b1": ratio(samples["served_c8_b1"], best),
        "served_over_in_process_b32": ratio(samples["served_c8_b32"], best),
    }


class Senders:
    """Closed loops: so many requests under way at once, of so many images each, divided among processes."""

    def __init__(self, url: str, files: list[bytes], num_processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        together = context.Barrier(num_processes)
        self._num_processes = num_processes
        self._pool = ProcessPoolExecutor(
            num_processes, context, initializer=_prepare, initargs=(url, files, together)
        )
        list(self._pool.map(_wait_for_all, range(num_processes)))

    def __enter__(self) -> "Senders":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def measures(self, name: str) -> dict[str, Measure]:
        """Of every concurrency and request batch; their keys begin with this name."""
        return {
            f"{name}_c{in_flight}_b{size}": functools.partial(self._images_per_s, in_flight, size)
            for size in REQUEST_BATCHES
            for in_flight in CONCURRENCIES
        }

    def _images_per_s(self, in_flight: int, size: int, seconds: float) -> float:
        num_busy = min(in_flight, self._num_processes)
        shares = [len(range(number, in_flight, num_busy)) for number in range(num_busy)]
        running = [self._pool.submit(_closed_loop, share, size, seconds) for share in shares]
        return sum(one.result() for one in running)


def _prepare(url: str, files: list[bytes], together: Any) -> None:
    """In each process of the load."""
    global _targets, _together
    _targets = {size: Target(url, files, request_batch=size) for size in REQUEST_BATCHES}
    _together = together


def _wait_for_all(_: int) -> None:
    """The first task of each: no load begins before all processes are there."""
    _together.wait(timeout=60)


def _closed_loop(in_flight: int, size: int, seconds: float) -> float:
    try:
        return asyncio.run(closed_loop(_targets[size], in_flight, seconds)).images_per_s
    except NothingMeasured:  # too short for so many images under way at once: 0 is what was seen
        return 0.0


if __name__ == "__main__":
    command_line(main)
