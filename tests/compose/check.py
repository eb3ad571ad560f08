"""What has to hold while the composition runs: answers come, Prometheus counted them, alerts are right."""

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tritonclient.grpc as triton
import typer
from tritonclient.utils import InferenceServerException

from fruitstand.artefacts import read_json
from fruitstand.contract import FRUIT_CLASSIFIER, IMAGE
from fruitstand.errors import FruitstandError, ServerError
from fruitstand.images.synthetic import encode, pattern
from fruitstand.network.connections import fetch_page, open_triton
from fruitstand_client import Client
from fruitstand_client.command.sources import find_images

NUM_IMAGES, BATCH = 1000, 20
NUM_TARGETS = 4
"""Two servers, the gateway, and the watch for drift."""
PROMETHEUS = "http://127.0.0.1:9090"
CALLS = 'sum(envoy_cluster_grpc_answers{grpc_method="ModelInfer",grpc_code="0"})'
"""Calls that the gateway answered with OK."""
NOT_OK = 'sum(envoy_cluster_grpc_answers{grpc_method="ModelInfer",grpc_code!="0"})'
EXTRA_IMAGES = (
    'sum(nv_inference_count{model="fruit_classifier"})'
    ' - sum(nv_inference_request_success{model="fruit_classifier"})'
)
"""Images that came along with another one: health checks, of one image each, do not change it."""
FIRING = 'ALERTS{alertstate="firing"}'
NUM_CALLERS, NUM_ROUNDS = 8, 20
WITHIN_S = 60.0
SETTLED_S = 12.0
"""Two scrapes and a bit."""
ALERT_WITHIN_S = 240.0

app = typer.Typer(add_completion=False)
Images = Annotated[Path, typer.Option(help="Folder with images.")]
Gateway = Annotated[str, typer.Option(help="HOST:PORT.")]


@app.command()
def images(images: Images, url: Gateway = "127.0.0.1:8001") -> None:
    """Classify a thousand images, and hold Prometheus' counters against what was sent."""
    wait_for(
        lambda: len(ask("up == 1")) == NUM_TARGETS, WITHIN_S, lambda: f"not all are scraped: {ask('up')}"
    )
    before = settled_counters()
    paths = islice(cycle(find_images([str(images)])), NUM_IMAGES)
    with Client(url, batch_size=BATCH) as client:
        failed = sum(one.failure is not None for one in client.classify_stream(paths))
    num_calls = NUM_IMAGES // BATCH
    if failed:
        raise ServerError(f"{failed} of {NUM_IMAGES} images failed")
    agree(before, {"calls": num_calls, "extra_images": NUM_IMAGES - num_calls, "not_ok": 0})
    print(f"{NUM_IMAGES} images in {num_calls} calls, 0 failures; Prometheus counted exactly these")


@app.command()
def http(
    images: Images, url: Annotated[str, typer.Option(help="Of the gateway.")] = "http://127.0.0.1:8000"
) -> None:
    """Classify an image over HTTP as curl does, and ask for the page and a closed path."""
    (image,) = islice(find_images([str(images)]), 1)
    found = subprocess.run(
        ["curl", "--silent", "--noproxy", "*", "--data-binary", f"@{image}", f"{url}/classify"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    label = json.loads(found.stdout)["label"]
    if b"fruitstand" not in fetch_page(f"{url}/", timeout_s=10):
        raise ServerError(f"{url}: no page")
    try:
        fetch_page(f"{url}/v2/models/{FRUIT_CLASSIFIER}/stats", timeout_s=10)
    except urllib.error.HTTPError as exc:
        print(f"curl: {image} is {label}; statistics are closed with {exc.code}")
    else:
        raise ServerError(f"{url}: the statistics are open")


@app.command()
def locust(
    result: Annotated[Path, typer.Option(help="Where its result will be.")], command: list[str]
) -> None:
    """Run the load test, and hold Prometheus' counters against Locust's."""
    before = settled_counters()
    subprocess.run(command, check=True, timeout=600)
    accounted = read_json(result)["accounted"]
    num_calls, refused = accounted["num_calls"], accounted["num_rejected"]
    if failed := accounted["num_unanswered"] - refused:
        raise ServerError(f"{failed} of {num_calls} calls of Locust failed otherwise than by a refusal")
    # One more: the question whether the server answers at all. One image each.
    agree(before, {"calls": num_calls - refused + 1, "extra_images": 0, "not_ok": refused})
    print(
        f"{num_calls} calls of Locust, {refused} refused, no other failure; Prometheus counted exactly these"
    )


@app.command()
def alerts(
    images: Images,
    firing: Annotated[str, typer.Option(help="Wait until these fire, with commas.")] = "",
    silent: Annotated[str, typer.Option(help="Wait until none of these fires.")] = "",
    url: Gateway = "127.0.0.1:8001",
) -> None:
    """Wait for alerts; callers are answered all the while."""
    come, gone = (set(filter(None, names.split(","))) for names in (firing, silent))
    paths = list(islice(find_images([str(images)]), BATCH))
    started, answered = time.monotonic(), 0

    def as_wanted() -> bool:
        nonlocal answered
        with Client(url) as client:
            for one in client.classify(paths):
                if one.failure is not None:
                    raise one.failure
                answered += 1
        found = {row["metric"]["alertname"] for row in ask(FIRING)}
        return come <= found and not gone & found

    wait_for(as_wanted, ALERT_WITHIN_S, lambda: f"firing is {ask(FIRING)}")
    words = [f"{name} fires" for name in sorted(come)] + [f"{name} is resolved" for name in sorted(gone)]
    took_s = time.monotonic() - started
    print(f"{', '.join(words)} after {took_s:.0f} s; {answered} images meanwhile, 0 failures")


@app.command()
def promote(images: Images, command: list[str], url: Gateway = "127.0.0.1:8001") -> None:
    """Run a promotion while callers ask: no call fails, and afterwards another version answers."""
    paths = list(islice(find_images([str(images)]), BATCH))
    answers: Counter[str | None] = Counter()
    failures: list[FruitstandError] = []
    ended = threading.Event()

    def call() -> None:
        with Client(url) as client:
            while not ended.is_set():
                for one in client.classify(paths):
                    answers[one.model_version] += 1
                    failures.extend([] if one.failure is None else [one.failure])

    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(call) for _ in range(4)]
        time.sleep(2)
        before = set(answers)
        try:
            subprocess.run(command, check=True, timeout=600)
            time.sleep(2)
        finally:
            ended.set()
        for one in callers:
            one.result()
    with Client(url) as client:
        after = {one.model_version for one in client.classify(paths)}
    if failures or len(before) != 1 or len(after) != 1 or before == after:
        raise ServerError(f"versions {before} before, {after} after, {len(failures)} failed: {failures[:1]}")
    counts = ", ".join(
        f"{number} by version {version}" for version, number in sorted(answers.items(), key=str)
    )
    print(f"promoted under load: {sum(answers.values())} images, {counts}, 0 failed")


@app.command()
def bad(images: Images, url: Gateway = "127.0.0.1:8001") -> None:
    """Send bad images among good ones: each bad one is refused alone, the others are answered.

    Past the Python client, which refuses most of these itself.
    """
    good = [Path(str(path)).read_bytes() for path in islice(find_images([str(images)]), NUM_CALLERS - 1)]
    server = open_triton(url)
    refused: Counter[str] = Counter()
    with ThreadPoolExecutor(NUM_CALLERS) as pool:
        for _ in range(NUM_ROUNDS):
            for kind, content in bad_images():
                *errors, error = pool.map(lambda encoded: error_of(server, encoded), [*good, content])
                if error is None or any(errors):
                    raise ServerError(f"{kind}: answered {error is None}; the images beside it got {errors}")
                refused[f"{kind}: {error}"] += 1
    server.close()
    for text, number in sorted(refused.items()):
        print(f"  {number} refused, {text}")
    print(f"bad images: {refused.total()} refused alone, {refused.total() * len(good)} beside them answered")


def bad_images() -> Iterator[tuple[str, bytes]]:
    """What no decoder should be given, by name."""
    jpeg, png = encode(pattern(100, 100)), encode(pattern(100, 100), "PNG")
    yield "no image", b"not an image at all, just some text of a hundred characters or so, sent by mistake"
    yield "cut JPEG", jpeg[: len(jpeg) // 2]
    yield "broken PNG", png[:60] + bytes(40) + png[100:]
    yield "half a header", jpeg[:12]
    yield "60,000 pixels wide", encode(pattern(60_000, 4))


def error_of(server: triton.InferenceServerClient, encoded: bytes) -> str | None:
    """The status and text that one image in a request of its own gets; None is an answer."""
    tensor = triton.InferInput(IMAGE, [1, len(encoded)], "UINT8")
    tensor.set_data_from_numpy(np.frombuffer(encoded, np.uint8)[None])
    try:
        server.infer(FRUIT_CLASSIFIER, [tensor], client_timeout=30)
    except InferenceServerException as exc:
        return f"{exc.status()}: {exc.message()[:120]}"
    return None


def agree(before: dict[str, float], grown: dict[str, int]) -> None:
    """Wait until Prometheus' counters have grown by just this."""
    wanted = {name: before[name] + by for name, by in grown.items()}
    wait_for(
        lambda: counters() == wanted, WITHIN_S, lambda: f"Prometheus has {counters()}, the client {wanted}"
    )


def counters() -> dict[str, float]:
    """As Prometheus has them; 0 before one first counts."""
    queries = {"calls": CALLS, "extra_images": EXTRA_IMAGES, "not_ok": NOT_OK}
    return {name: float(next(iter(ask(q)), {"value": (0, "0")})["value"][1]) for name, q in queries.items()}


def settled_counters() -> dict[str, float]:
    """Once they stand still: those of earlier callers come with the next scrapes."""
    deadline, seen = time.monotonic() + WITHIN_S, counters()
    while True:
        time.sleep(SETTLED_S)
        if (now := counters()) == seen:
            return now
        if time.monotonic() > deadline:
            raise ServerError(f"somebody else calls the gateway: {seen}, then {now}")
        seen = now


def ask(query: str) -> list[dict[str, Any]]:
    """The samples of an instant query."""
    url = f"{PROMETHEUS}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    rows: list[dict[str, Any]] = json.loads(fetch_page(url, timeout_s=10))["data"]["result"]
    return rows


def wait_for(condition: Callable[[], bool], within_s: float, missing: Callable[[], str]) -> None:
    """Until it holds.

    Raises:
        ServerError: it did not in time.
    """
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise ServerError(missing())
        time.sleep(2)


if __name__ == "__main__":
    try:
        app()
    except FruitstandError as exc:
        print(f"compose-test: error: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)
