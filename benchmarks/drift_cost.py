"""What sampling for drift costs: the same server with and without it, in turns.

    python -m benchmarks.drift_cost --repository REPOSITORY --images FOLDER [--out FILE]

The ratio of each pair is what counts, not its images/s. Objective: less than 1 % of the throughput, by the
median pair; on a busy machine the spread is larger than that and says nothing.
"""

import os
import statistics
import time
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks.provenance import provenance
from benchmarks.stages import command_line, served
from fruitstand.artefacts import write_json
from fruitstand_client import Client

VARIABLE = "FRUITSTAND_SAMPLES"


def main(
    repository: Annotated[Path, typer.Option(help="Model repository to serve.")],
    images: Annotated[Path, typer.Option(help="Folder with images.")],
    pairs: Annotated[int, typer.Option(min=1, help="Measurements with and without, in turns.")] = 10,
    seconds: Annotated[float, typer.Option(min=1, help="Of each.")] = 20.0,
    out: Annotated[Path | None, typer.Option(help="Result file.")] = None,
) -> None:
    """Run both servers at once, one of them idle at a time."""
    paths = sorted(path for path in images.rglob("*") if path.suffix == ".jpg")
    with TemporaryDirectory(prefix="fruitstand-drift-cost-") as name:
        folder = Path(name)
        os.environ.pop(VARIABLE, None)
        with served(repository, log=folder / "without.log") as without:
            os.environ[VARIABLE] = str(folder / "samples")
            with served(repository, log=folder / "with.log") as sampling:
                urls = {"without": without, "with": sampling}
                for url in urls.values():
                    images_per_s(url, paths, seconds / 4)
                rows = []
                for number in range(pairs):
                    order = list(urls) if number % 2 else list(urls)[::-1]  # neither is always first
                    rows.append({key: images_per_s(urls[key], paths, seconds) for key in order})
        num_files = len(list((folder / "samples").glob("*.npz")))
    ratios = [row["with"] / row["without"] for row in rows]
    summary = {
        "ratio_median": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "num_sample_files": num_files,
    }
    print(summary)
    if out is not None:
        settings = {"pairs": pairs, "seconds": seconds}
        write_json(out, {**provenance(), "settings": settings, "samples": rows, "summary": summary})


def images_per_s(url: str, paths: list[Path], seconds: float) -> float:
    """Answered images in a second, 16 requests of 16 images in flight."""
    with Client(url, batch_size=16, in_flight=16) as client:
        started = time.monotonic()
        count = 0
        for one in client.classify_stream(islice(cycle(paths), 10**9)):
            if one.failure is not None:
                raise one.failure
            count += 1
            if time.monotonic() - started > seconds:
                break
        return count / (time.monotonic() - started)


if __name__ == "__main__":
    command_line(main)
