"""What decode and model alone do in one process: the limit that `fruitstand score` is held against.

    python -m scoring.limit SOURCE --repository model_repository --threads 2

Holds every image in memory, prints a line when it is ready, waits for a line on stdin so that several can
begin together, and prints how many images it answered in how many seconds. `benchmarks.score` runs it.
"""

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from fruitstand.contract import MAX_BATCH_SIZE
from scoring.model import pin_repository
from scoring.partitions import find_inputs


def measure(
    source: Annotated[Path, typer.Argument(help="As for `fruitstand score`.")],
    repository: Annotated[Path, typer.Option(help="Model repository.")],
    threads: Annotated[int, typer.Option(help="Of the decode and of the session.")] = 1,
) -> None:
    """Answer every image once."""
    inputs = find_inputs(source, partition_size=1024, columns=("image", "path"))
    encoded = [image.content for partition in inputs.partitions for image in partition.read()]
    model = pin_repository(repository, None).open(num_threads=threads, top_k=5)
    model.answer(encoded[:MAX_BATCH_SIZE])
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    for first in range(0, len(encoded), MAX_BATCH_SIZE):
        model.answer(encoded[first : first + MAX_BATCH_SIZE])
    print(json.dumps({"num_images": len(encoded), "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    typer.run(measure)
