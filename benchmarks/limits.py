r"""The limits of this machine, and how near the server comes: decode, inference, both in process, and served.

    python -m benchmarks.limits --repository runs/demo/model_repository --images runs/demo/data/images/Test \
        --out benchmarks/results/limits_HARDWARE_DATE_COMMIT.json
    python -m benchmarks.limits ... --quick      # a minute: does it run?

Everything is measured in turn, `--rounds` times over, so that what else the machine does hits all alike; the
summary holds medians of ratios within a round, with the smallest and the largest.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import onnxruntime
import tritonclient.grpc.aio as triton
import typer
from tritonclient.utils import InferenceServerException

from benchmarks.provenance import provenance
from benchmarks.stages import console, served
from fruitstand.artefacts import read_json, write_json
from fruitstand.contract import (
    ENCODED,
    FRUIT_CLASSIFIER,
    FRUIT_RESNET,
    IMAGE,
    IMAGE_SUFFIXES,
    MAX_BATCH_SIZE,
    PIXELS,
    PROBABILITIES,
)
from fruitstand.dali_pipeline import load_pipeline_definition, served_pipeline
from fruitstand.errors import DataError
from fruitstand.versions import MANIFEST_NAME, serving_state

BATCH = 32
CONCURRENCIES = (1, 8, 64, 128)
REQUEST_BATCHES = (1, 8, 32)
WARM_UP_S = 0.5
PROVIDERS: dict[str, Any] = {
    "ort": "CPUExecutionProvider",
    "openvino": ("OpenVINOExecutionProvider", {"device_type": "CPU"}),
    "cuda": "CUDAExecutionProvider",
}
ENGINES = {"cpu": "ort", "openvino": "openvino"}
"""Names of the manifest's engines among those."""
VARIANTS = {"fp32": "model.onnx", "int8": "model.int8.onnx"}

Batch = Sequence[np.ndarray]
Measure = Callable[[float], float]
"""Runs for so many seconds and returns images/s."""


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
    files = _read_images(images)
    state = serving_state(repository)
    if state is None:
        raise DataError(f"{repository}: serves no version; publish one with fruitstand export")
    version = repository / FRUIT_RESNET / str(state.version)
    measures = dict(_in_process(repository, version, files))
    samples: dict[str, list[float]] = {}
    with (
        TemporaryDirectory(prefix="fruitstand-limits-") as scratch,
        served(repository, log=Path(scratch, "triton.log")) as url,
    ):
        measures |= _through_the_server(url, files)
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


def in_process_images_per_s(repository: Path, images: Path, seconds: float) -> float:
    """The better of the two loops without a server, with the engine that is served."""
    state = serving_state(repository)
    if state is None:
        raise DataError(f"{repository}: serves no version; publish one with fruitstand export")
    version = repository / FRUIT_RESNET / str(state.version)
    measures = dict(_in_process(repository, version, _read_images(images)))
    return round(max(measures[name](seconds) for name in ("sequential", "overlapped")), 1)


def summarise(samples: dict[str, list[float]]) -> dict[str, Any]:
    """Ratios of the served to the best in-process loop, and all medians."""
    in_process = [max(pair) for pair in zip(samples["sequential"], samples["overlapped"], strict=True)]
    return {
        "images_per_s": {name: statistics.median(values) for name, values in samples.items()},
        "served_over_in_process_c64_b1": _ratio(samples["served_c64_b1"], in_process),
        "served_over_in_process_c8_b1": _ratio(samples["served_c8_b1"], in_process),
        "served_over_in_process_b32": _ratio(samples["served_c8_b32"], in_process),
    }


def _ratio(values: list[float], references: list[float]) -> dict[str, float]:
    ratios = [value / reference for value, reference in zip(values, references, strict=True)]
    return {
        "median": round(statistics.median(ratios), 3),
        "min": round(min(ratios), 3),
        "max": round(max(ratios), 3),
    }


def _read_images(folder: Path) -> list[np.ndarray]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)[:512]
    if len(paths) < BATCH:
        raise DataError(f"{folder}: {len(paths)} images, at least {BATCH} are needed")
    return [np.frombuffer(path.read_bytes(), np.uint8) for path in paths]


def _batches(files: Batch) -> Iterator[list[np.ndarray]]:
    """Full batches without end."""
    start = 0
    while True:
        yield [files[(start + offset) % len(files)] for offset in range(BATCH)]
        start += BATCH


def _timed(seconds: float, step: Callable[[], int]) -> float:
    """Images/s of a step that says how many it did; what it does at first does not count."""
    end_of_warm_up = time.perf_counter() + min(WARM_UP_S, seconds)
    while time.perf_counter() < end_of_warm_up:
        step()
    started, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds or done == 0:
        done += step()
    return done / elapsed


def _in_process(repository: Path, version: Path, files: list[np.ndarray]) -> Iterator[tuple[str, Measure]]:
    """The same pipeline file, ONNX file and engine as served, without a server."""
    definition = load_pipeline_definition(served_pipeline(repository))
    pipeline = definition(batch_size=MAX_BATCH_SIZE, device_id=None)
    pipeline.build()
    batches = _batches(files)

    def decode() -> np.ndarray:
        pipeline.feed_input(ENCODED, next(batches))
        (output,) = pipeline.run()
        return np.asarray(output.as_cpu().as_tensor())

    yield "decode", lambda seconds: _timed(seconds, lambda: len(decode()))
    pixels = decode().copy()
    for variant, file in VARIANTS.items():
        for name, provider in PROVIDERS.items():
            asked = provider if isinstance(provider, str) else provider[0]
            if asked not in onnxruntime.get_available_providers() or not (version / file).is_file():
                continue
            session = _session(version / file, provider)
            yield (
                f"infer_{variant}_{name}",
                lambda seconds, session=session: _timed(
                    seconds, lambda: len(session.run([PROBABILITIES], {PIXELS: pixels})[0])
                ),
            )
    serve = read_json(version / MANIFEST_NAME)["serve"]
    session = _session(version / serve["cpu_model"], PROVIDERS[ENGINES[serve["cpu_engine"]]])

    def infer(batch: np.ndarray) -> int:
        return len(session.run([PROBABILITIES], {PIXELS: batch})[0])

    yield "sequential", lambda seconds: _timed(seconds, lambda: infer(decode()))

    def overlapped(seconds: float) -> float:
        """The next batch is decoded while this one is computed."""
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(lambda: decode().copy())

            def step() -> int:
                nonlocal pending
                batch, pending = pending.result(), pool.submit(lambda: decode().copy())
                return infer(batch)

            return _timed(seconds, step)

    yield "overlapped", overlapped


def _session(path: Path, provider: Any) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=[provider])


def _through_the_server(url: str, files: list[np.ndarray]) -> dict[str, Measure]:
    """Closed loops: so many requests under way at once, of so many images each."""
    requests = {size: [_request(files, start, size) for start in range(0, len(files), size)]
                for size in REQUEST_BATCHES}  # fmt: skip
    return {
        f"served_c{concurrency}_b{size}": lambda seconds, concurrency=concurrency, size=size: asyncio.run(
            _closed_loop(url, requests[size], concurrency, seconds)
        )
        for size in REQUEST_BATCHES
        for concurrency in CONCURRENCIES
    }


def _request(files: list[np.ndarray], start: int, size: int) -> list[triton.InferInput]:
    chosen = [files[(start + offset) % len(files)] for offset in range(size)]
    rows = np.zeros((size, max(map(len, chosen))), np.uint8)
    for row, file in zip(rows, chosen, strict=True):
        row[: len(file)] = file
    tensor = triton.InferInput(IMAGE, list(rows.shape), "UINT8")
    tensor.set_data_from_numpy(rows)
    return [tensor]


async def _closed_loop(
    url: str, requests: list[list[triton.InferInput]], concurrency: int, seconds: float
) -> float:
    """Images/s of the answered requests; the queue's refusals count for nothing, other failures end it."""
    done, position = 0, 0
    counts_from = time.perf_counter() + min(WARM_UP_S, seconds)
    end = counts_from + seconds
    async with triton.InferenceServerClient(url) as client:

        async def user() -> None:
            nonlocal done, position
            while time.perf_counter() < end:
                request = requests[position % len(requests)]
                position += 1
                try:
                    await client.infer(FRUIT_CLASSIFIER, request)
                except InferenceServerException as exc:
                    if exc.status() != "StatusCode.UNAVAILABLE":
                        raise
                    continue
                if counts_from <= time.perf_counter() <= end:
                    done += request[0].shape()[0]

        await asyncio.gather(*(user() for _ in range(concurrency)))
    return done / seconds


if __name__ == "__main__":
    typer.run(main)
