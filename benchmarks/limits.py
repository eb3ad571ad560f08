r"""The limits of this machine, and how near the server comes: decode, inference, both in process, and served.

    python -m benchmarks.limits --repository runs/demo/model_repository --images runs/demo/data/images/Test \
        --out benchmarks/results/limits_HARDWARE_DATE_COMMIT.json
    python -m benchmarks.limits ... --quick      # a minute: does it run?

Everything is measured in turn, `--rounds` times over, so that what else the machine does hits all alike; the
summary holds medians of ratios within a round, with the smallest and the largest.
"""

import asyncio
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.in_process import BATCH, LOOPS, Measure, in_process, read_images, served_version
from benchmarks.peers.load import Target, closed_loop
from benchmarks.provenance import provenance
from benchmarks.ratios import ratio
from benchmarks.stages import command_line, console, served
from fruitstand.artefacts import write_json

CONCURRENCIES = (1, 8, 64, 128)
REQUEST_BATCHES = (1, 8, 32)


def main(
    repository: Annotated[Path, typer.Option(help="Model repository with a served version.")],
    images: Annotated[Path, typer.Option(help="Folder with images.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    model_name: Annotated[str, typer.Option(help="Name of the model in the result.")] = "model",
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured.")] = 5,
    seconds: Annotated[float, typer.Option(help="For each measurement.")] = 5.0,
    quick: Annotated[bool, typer.Option("--quick", help="One short round.")] = False,
) -> None:
    """Measure and write the result."""
    if quick:
        rounds, seconds = 1, 0.5
    files = read_images(images)
    measures = in_process(repository, served_version(repository), files)
    samples: dict[str, list[float]] = {}
    with (
        TemporaryDirectory(prefix="fruitstand-limits-") as scratch,
        served(repository, log=Path(scratch, "triton.log")) as url,
    ):
        measures |= _through_the_server(url, [file.tobytes() for file in files])
        for number in range(rounds):
            for name, measure in measures.items():
                samples.setdefault(name, []).append(round(measure(seconds), 1))
                console.print(f"{number + 1}/{rounds} {name}: {samples[name][-1]} images/s")
    settings = {
        "rounds": rounds,
        "seconds": seconds,
        "batch": BATCH,
        "num_images": len(files),
        "quick": quick,
    }
    result = {**provenance(), "settings": settings, "samples": {model_name: samples},
              "summary": {model_name: summarise(samples)}}  # fmt: skip
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


def _through_the_server(url: str, files: list[bytes]) -> dict[str, Measure]:
    """Closed loops: so many requests under way at once, of so many images each."""
    targets = {size: Target(url, files, request_batch=size) for size in REQUEST_BATCHES}
    return {
        f"served_c{in_flight}_b{size}": lambda seconds, in_flight=in_flight, size=size: (
            asyncio.run(closed_loop(targets[size], in_flight, seconds)).images_per_s
        )
        for size in REQUEST_BATCHES
        for in_flight in CONCURRENCIES
    }


if __name__ == "__main__":
    command_line(main)
