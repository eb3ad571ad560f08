"""Compare the speed of checkouts of this project under the same load.

    python -m benchmarks.checkouts before=../before after=. --repository REPOSITORY --images FOLDER --out FILE

Each checkout has its own `.venv` (`make setup`) and runs one server. A round measures every load on each
server, in an order that alternates between rounds. The summary has medians, and ratios to the first checkout
within rounds.
"""

import asyncio
import contextlib
import statistics
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.load import Target, closed_loop, ratio
from fruitstand.artefacts import write_json
from fruitstand.errors import UsageError
from fruitstand.machine.provenance import provenance
from fruitstand.stages import command_line, console, served
from loadtests.generator.profiles import read_sample

NUM_IMAGES = 256
IN_FLIGHT = (1, 4, 8, 64)
MEASURED = ("images_per_s", "p50_ms", "p99_ms")


def main(
    checkouts: Annotated[
        list[str], typer.Argument(help="NAME=FOLDER of each checkout; the first one is the baseline.")
    ],
    repository: Annotated[Path, typer.Option(help="Model repository with a served version.")],
    images: Annotated[Path, typer.Option(help="Folder with images.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of measurements.")] = 5,
    seconds: Annotated[float, typer.Option(help="Seconds per measurement.")] = 4.0,
) -> None:
    """Measure and write the result."""
    folders = dict(one.partition("=")[::2] for one in checkouts)
    samples: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in folders}
    files = read_sample(images, NUM_IMAGES)
    with TemporaryDirectory(prefix="fruitstand-checkouts-") as scratch, contextlib.ExitStack() as stack:
        targets = {}
        for name, folder in folders.items():
            python = Path(folder, ".venv", "bin", "python").absolute()
            if not python.is_file():
                raise UsageError(f"{name}: no {python}; run 'make setup' in that checkout")
            server = served(repository, log=Path(scratch, f"{name}.log"), python=str(python))
            targets[name] = Target(stack.enter_context(server), files)
        for number in range(rounds):
            for in_flight in IN_FLIGHT:
                for name in sorted(targets, reverse=number % 2 == 1):
                    one = asdict(asyncio.run(closed_loop(targets[name], in_flight, seconds)))
                    samples[name].setdefault(f"c{in_flight}", []).append(one)
                    console.print(f"{number + 1}/{rounds} {name}, {in_flight} in flight: {one}")
    first = next(iter(folders))
    summary = {name: summarise(rows, samples[first]) for name, rows in samples.items()}
    settings = {"checkouts": list(folders), "rounds": rounds, "seconds": seconds}
    write_json(out, {**provenance(), "settings": settings, "samples": samples, "summary": summary})
    for name, loads in summary.items():
        print(name, loads)


def summarise(
    rows: dict[str, list[dict[str, Any]]], first: dict[str, list[dict[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """Medians and ratios to the first checkout, by load."""
    return {
        load: {
            key: {
                "median": statistics.median(one[key] for one in rows[load]),
                "over_first": ratio([one[key] for one in rows[load]], [one[key] for one in first[load]]),
            }
            for key in MEASURED
        }
        for load in rows
    }


if __name__ == "__main__":
    command_line(main)
