r"""Compare the server with the machine's limits: decode, inference and both in process.

    python -m benchmarks.limits --repository runs/demo/model_repository --images runs/demo/data/images/Test \
        --out benchmarks/results/limits_HARDWARE_DATE_COMMIT.json
    python -m benchmarks.limits ... --quick      # one minute, to check that it runs
    python -m benchmarks.limits ... --config-name gpu
    python -m benchmarks.limits ... --backends host,stub    # both: served_..., stub_...

Each round takes all measurements in turn, so that other load on the machine affects all alike. The summary
has the median, smallest and largest ratio within a round.
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
"""Most processes that send the load. One process sends a few thousand requests a second."""


def main(
    repository: Annotated[Path, typer.Option(help="Model repository with a served version.")],
    images: Annotated[Path, typer.Option(help="Folder with images.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    model_name: Annotated[str, typer.Option(help="Name of the model in the result.")] = "model",
    config_name: Annotated[
        str, typer.Option(help="Configuration of the server: cpu, gpu, gpu-trt.")
    ] = CPU_CONFIG,
    backends: Annotated[str, typer.Option(help="Comma-separated: host, stub. Ratios use the first.")] = HOST,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of measurements.")] = 5,
    seconds: Annotated[float, typer.Option(help="Seconds per measurement.")] = 5.0,
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
            # Written in every round, so that an aborted run keeps its results.
            result["samples"], result["summary"] = {model_name: samples}, {model_name: summarise(samples)}
            write_json(out, result)
    print(out)


def summarise(samples: dict[str, list[float]]) -> dict[str, Any]:
    """Medians of all measurements, and ratios of the served rates to the best in-process loop."""
    best = [max(rates) for rates in zip(*(samples[loop] for loop in LOOPS), strict=True)]
    return {
        "images_per_s": {name: statistics.median(values) for name, values in samples.items()},
        "served_over_in_process_c64_b1": ratio(samples["served_c64_b1"], best),
        "served_over_in_process_c8_b1": ratio(samples["served_c8_b1"], best),
        "served_over_in_process_b32": ratio(samples["served_c8_b32"], best),
    }


class Senders:
    """Closed loops of requests, divided among processes."""

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
        """One measurement for each concurrency and request batch, named `<name>_c<in flight>_b<images>`."""
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
    """Initialise a process of the load."""
    global _targets, _together
    _targets = {size: Target(url, files, request_batch=size) for size in REQUEST_BATCHES}
    _together = together


def _wait_for_all(_: int) -> None:
    """The first task of each process, which waits until all processes run."""
    _together.wait(timeout=60)


def _closed_loop(in_flight: int, size: int, seconds: float) -> float:
    try:
        return asyncio.run(closed_loop(_targets[size], in_flight, seconds)).images_per_s
    except NothingMeasured:  # the time is too short for this many images in flight
        return 0.0


if __name__ == "__main__":
    command_line(main)
