"""`fruitstand classify`: images named on the command line, predictions out."""

import logging
import sys
import time
from pathlib import Path

from fruitstand.artefacts import atomic_file
from fruitstand.errors import UsageError
from fruitstand.progress import track
from fruitstand_client.client import Client
from fruitstand_client.output import find_writer
from fruitstand_client.sources import find_images

log = logging.getLogger("fruitstand.classify")


def classify_paths(
    *,
    arguments: list[str],
    url: str,
    top_k: int,
    output_format: str,
    out: Path | None,
    batch_size: int,
    in_flight: int,
    deadline_s: float,
) -> int:
    """Classify what the arguments name and write a row an image, in order.

    Args:
        arguments: see `fruitstand_client.sources.find_images`.
        url: HOST:PORT of the server's gRPC endpoint.
        top_k: classes in each answer.
        output_format: table, jsonl or csv.
        out: a file that appears whole or not at all; None writes to stdout.
        batch_size: images in one request.
        in_flight: requests under way at once.
        deadline_s: for each request, seconds.

    Returns:
        How many images got no answer.

    Raises:
        UsageError: an argument that names no image, or a setting outside what is allowed.
        ClientError: the server did not answer.
    """
    write = find_writer(output_format)
    paths = find_images(arguments)
    try:
        client = Client(url, batch_size=batch_size, in_flight=in_flight, deadline_s=deadline_s)
    except ValueError as exc:
        raise UsageError(str(exc)) from exc
    started = time.monotonic()
    with client:
        answers = track(client.classify(paths, top_k=top_k), total=len(paths), description="classify")
        if out is None:
            answered, failed = write(answers, sys.stdout)
        else:
            # A file name may hold bytes that are no UTF-8; they are written as escapes.
            with (
                atomic_file(out) as temporary,
                temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
            ):
                answered, failed = write(answers, file)
    rate = len(paths) / (time.monotonic() - started)
    log.info("%d images answered, %d not, %.0f images/s", answered, failed, rate)
    return failed
