"""What has to hold while the composition runs: images are answered, and Prometheus counted them."""

import json
import time
import urllib.parse
import urllib.request
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated

import typer

from fruitstand.errors import ServerError
from fruitstand_client import Client
from fruitstand_client.sources import find_images

NUM_IMAGES = 1000
PROMETHEUS = "http://127.0.0.1:9090"
COUNTED = 'sum(nv_inference_count{model="fruit_classifier"})'
SCRAPED_WITHIN_S = 60.0


def check(
    images: Annotated[Path, typer.Option(help="Folder with images.")],
    url: Annotated[str, typer.Option(help="HOST:PORT of the gateway.")] = "127.0.0.1:8001",
) -> None:
    """Classify a thousand images and hold Prometheus' counter against the client's own count."""
    before = wait_for(lambda value: value is not None)
    paths = list(islice(cycle(find_images([str(images)])), NUM_IMAGES))
    with Client(url) as client:
        answers = list(client.classify_stream(paths))
    failed = [one for one in answers if one.failure is not None]
    if failed:
        raise ServerError(f"{len(failed)} of {len(answers)} failed, the first: {failed[0].error}")
    wanted = (before or 0) + len(answers)
    counted = wait_for(lambda value: value is not None and value >= wanted)
    if counted != wanted:
        raise ServerError(f"Prometheus counted {counted}, the client {wanted}")
    print(f"{len(answers)} images, 0 failures; Prometheus counted {counted - (before or 0):.0f} of them")


def wait_for(good):  # type: ignore[no-untyped-def]
    """The counter, once it is as wanted.

    Raises:
        ServerError: it did not get there.
    """
    deadline, value = time.monotonic() + SCRAPED_WITHIN_S, None
    while time.monotonic() < deadline:
        query = urllib.parse.urlencode({"query": COUNTED})
        try:
            with urllib.request.urlopen(f"{PROMETHEUS}/api/v1/query?{query}", timeout=5) as answer:
                rows = json.load(answer)["data"]["result"]
        except OSError:
            rows = []
        value = float(rows[0]["value"][1]) if rows else None
        if good(value):
            return value
        time.sleep(1)
    raise ServerError(f"Prometheus: {COUNTED} is {value} after {SCRAPED_WITHIN_S:.0f} s")


if __name__ == "__main__":
    typer.run(check)
