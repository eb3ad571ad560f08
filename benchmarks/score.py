"""What `fruitstand score` keeps of what decode and model alone can do on the same processors.

    python -m benchmarks.score --source data/fruits/images --repository model_repository \
        --out benchmarks/results/score_HARDWARE_DATE_COMMIT.json

Copies images, repeated, until there are enough. Each round measures three things one after the other, in
turning order, on all processors:

- one process, decode and model alone, with a thread a processor, images in memory;
- the same in one process a processor at once, which wastes less and is the harder limit;
- `fruitstand score` on Ray Data with one worker a processor, from the first partition begun to the last one
  written: reads files, writes parquet. How long all of it took, Ray's start included, stands beside it.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fruitstand.artefacts import write_json
from fruitstand.contract import IMAGE_SUFFIXES
from fruitstand.errors import DataError, FruitstandError
from fruitstand.machine.provenance import provenance
from fruitstand.machine.threads import thread_budget
from fruitstand.stages import command_line

console = Console(stderr=True, highlight=False)


def measure(
    source: Annotated[Path, typer.Option(help="Folder with images to repeat.")],
    repository: Annotated[Path, typer.Option(help="Model repository.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    num_images: Annotated[int, typer.Option(help="Images in a run.")] = 20_000,
    rounds: Annotated[int, typer.Option(help="Of all three measurements.")] = 5,
) -> None:
    """Measure in turn and write ratios with their spread."""
    num_cores = thread_budget()
    samples: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="fruitstand-bench-") as scratch:
        work = Path(scratch)
        images = _repeat(source, work / "images", num_images)
        measurements = {
            "one_process": lambda: _limit(images, repository, processes=1, threads=num_cores),
            "process_a_core": lambda: _limit(images, repository, processes=num_cores, threads=1),
            "score": lambda: _score(images, repository, work / "out"),
        }
        names = list(measurements)
        for number in range(rounds):
            sample: dict[str, float] = {"load_1_min": round(os.getloadavg()[0], 2)}
            for name in names[number % 3 :] + names[: number % 3]:
                sample |= {key: round(value, 4) for key, value in measurements[name]().items()}
            console.print(f"round {number + 1} of {rounds}: {sample}")
            samples.append(sample)
    ratios = {
        limit: [one["score_images_per_s"] / one[f"{limit}_images_per_s"] for one in samples]
        for limit in ("one_process", "process_a_core")
    }
    summary = {f"score_over_{limit}": _spread(values) for limit, values in ratios.items()}
    summary["score_images_per_s_per_core"] = _spread(
        [one["score_images_per_s"] / num_cores for one in samples]
    )
    settings = {"num_images": num_images, "rounds": rounds, "num_cores": num_cores, **_model(repository)}
    write_json(out, {**provenance(), "settings": settings, "samples": samples, "summary": summary})
    console.print_json(data=summary)


def _repeat(source: Path, target: Path, num_images: int) -> Path:
    """A folder with so many images, each a file of its own."""
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise DataError(f"{source}: no images in it")
    target.mkdir()
    for number in range(num_images):
        path = found[number % len(found)]
        shutil.copyfile(path, target / f"{number:06}{path.suffix}")
    return target


def _limit(images: Path, repository: Path, *, processes: int, threads: int) -> dict[str, float]:
    """Images a second of decode and model alone, in so many processes that begin together."""
    command = [sys.executable, "-m", "scoring.limit", images, "--repository", repository]
    running = [
        subprocess.Popen(
            [*map(str, command), "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    for one in running:
        assert one.stdout is not None
        if one.stdout.readline() != "ready\n":
            raise FruitstandError("the limit could not be measured; see its error above")
    for one in running:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    results = [json.loads(one.communicate()[0]) for one in running]
    name = "one_process" if processes == 1 else "process_a_core"
    return {f"{name}_images_per_s": sum(one["num_images"] / one["seconds"] for one in results)}


def _score(images: Path, repository: Path, out: Path) -> dict[str, float]:
    """Images a second of the command, with and without its start."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "fruitstand", "score", images, "--repository", repository, "--out", out]
    here = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}  # no cluster's
    done = subprocess.run([*map(str, command), "--json"], stdout=subprocess.PIPE, check=True, env=here)
    result = json.loads(done.stdout)
    return {
        "score_images_per_s": result["num_images"] / result["scoring_s"],
        "score_total_s": result["total_s"],
        "score_scoring_s": result["scoring_s"],
    }


def _model(repository: Path) -> dict[str, object]:
    """What is served there."""
    from fruitstand.repository.versions import read_version, serving_state

    state = serving_state(repository)
    if state is None:
        raise DataError(f"{repository}: serves no version; publish one with fruitstand export")
    manifest = read_version(repository, state.version).manifest
    return {"model_name": manifest["model_name"], **manifest["serve"]}


def _spread(values: list[float]) -> dict[str, float]:
    """Median, and the least and greatest of the rounds."""
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


if __name__ == "__main__":
    command_line(measure)
