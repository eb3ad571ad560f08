"""What decode and model do without a server: each alone, and three ways to run one after the other."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime

from fruitstand.artefacts import read_json
from fruitstand.contract import ENCODED, FRUIT_RESNET, IMAGE_SUFFIXES, MAX_BATCH_SIZE, PIXELS, PROBABILITIES
from fruitstand.dali_pipeline import load_pipeline_definition, served_pipeline
from fruitstand.errors import DataError
from fruitstand.threads import thread_budget
from fruitstand.versions import MANIFEST_NAME, serving_state

BATCH = 32
WARM_UP_S = 0.5
PROVIDERS = {
    "ort": "CPUExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cuda": "CUDAExecutionProvider",
}
ENGINES = {"cpu": "ort", "openvino": "openvino"}
"""Names of the manifest's engines among those."""
VARIANTS = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
LOOPS = ("sequential", "overlapped", "parallel")
"""Decode and model with all threads each in turn; the next batch decoded meanwhile; a loop a thread."""

Batch = Sequence[np.ndarray]
Measure = Callable[[float], float]
"""Runs for so many seconds and returns images/s."""


def in_process_images_per_s(repository: Path, images: Path, seconds: float) -> float:
    """The best of the loops without a server, with the engine that is served.

    Args:
        repository: with a served version.
        images: folder with at least `BATCH` images.
        seconds: for each loop.
    """
    measures = in_process(repository, served_version(repository), read_images(images))
    return round(max(measures[name](seconds) for name in LOOPS), 1)


def served_version(repository: Path) -> Path:
    """The folder of the version that is served.

    Raises:
        DataError: none is.
    """
    state = serving_state(repository)
    if state is None:
        raise DataError(f"{repository}: serves no version; publish one with fruitstand export")
    return repository / FRUIT_RESNET / str(state.version)


def read_images(folder: Path) -> list[np.ndarray]:
    """Up to 512 encoded images of a folder.

    Raises:
        DataError: fewer than a batch.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)[:512]
    if len(paths) < BATCH:
        raise DataError(f"{folder}: {len(paths)} images, at least {BATCH} are needed")
    return [np.frombuffer(path.read_bytes(), np.uint8) for path in paths]


def in_process(repository: Path, version: Path, files: Batch) -> dict[str, Measure]:
    """The same pipeline file, ONNX files and engines as served, without a server."""
    decode = decoder(repository, files)
    pixels = decode().copy()
    measures: dict[str, Measure] = {"decode": lambda seconds: timed(seconds, lambda: len(decode()))}
    for variant, file in VARIANTS.items():
        for engine, provider in PROVIDERS.items():
            if provider in onnxruntime.get_available_providers() and (version / file).is_file():
                infer = _infer(version / file, engine)
                measures[f"infer_{variant}_{engine}"] = lambda seconds, infer=infer: timed(
                    seconds, lambda: infer(pixels)
                )
    serve = read_json(version / MANIFEST_NAME)["serve"]
    path, engine = version / serve["cpu_model"], ENGINES[serve["cpu_engine"]]
    infer = _infer(path, engine)
    measures["sequential"] = lambda seconds: timed(seconds, lambda: infer(decode()))
    measures["overlapped"] = lambda seconds: _overlapped(seconds, decode, infer)
    pairs = [
        (decoder(repository, files, num_threads=1), _infer(path, engine, num_threads=1))
        for _ in range(thread_budget())
    ]
    measures["parallel"] = lambda seconds: _parallel(seconds, pairs)
    return measures


Decode = Callable[[], np.ndarray]
Infer = Callable[[np.ndarray], int]


def _overlapped(seconds: float, decode: Decode, infer: Infer) -> float:
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(lambda: decode().copy())

        def step() -> int:
            nonlocal pending
            batch, pending = pending.result(), pool.submit(lambda: decode().copy())
            return infer(batch)

        return timed(seconds, step)


def _parallel(seconds: float, pairs: list[tuple[Decode, Infer]]) -> float:
    """Each pair on a thread of its own: DALI and ONNX Runtime compute without Python's lock."""
    with ThreadPoolExecutor(len(pairs)) as pool:
        rates = [
            pool.submit(timed, seconds, lambda decode=decode, infer=infer: infer(decode()))
            for decode, infer in pairs
        ]
        return sum(rate.result() for rate in rates)


def decoder(repository: Path, files: Batch, *, num_threads: int | None = None, batch: int = BATCH) -> Decode:
    """Decodes the next `batch` images at each call; the array is overwritten by the next."""
    options = {} if num_threads is None else {"num_threads": num_threads}
    define = load_pipeline_definition(served_pipeline(repository))
    pipeline = define(batch_size=MAX_BATCH_SIZE, device_id=None, **options)
    pipeline.build()
    batches = _batches(files, batch)

    def decode() -> np.ndarray:
        pipeline.feed_input(ENCODED, next(batches))
        (output,) = pipeline.run()
        return np.asarray(output.as_cpu().as_tensor())

    return decode


def _infer(path: Path, engine: str, *, num_threads: int | None = None) -> Infer:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    own: dict[str, str] = {}
    if engine == "openvino":  # without pinning, as served: sessions beside each other would share cores
        own = {"device_type": "CPU", "load_config": '{"CPU": {"ENABLE_CPU_PINNING": false}}'}
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
        if engine == "openvino":
            own["num_of_threads"] = str(num_threads)
    session = onnxruntime.InferenceSession(path, options, providers=[(PROVIDERS[engine], own)])
    return lambda batch: len(session.run([PROBABILITIES], {PIXELS: batch})[0])


def _batches(files: Batch, size: int) -> Iterator[list[np.ndarray]]:
    """Without end."""
    start = 0
    while True:
        yield [files[(start + offset) % len(files)] for offset in range(size)]
        start += size


def timed(seconds: float, step: Callable[[], int]) -> float:
    """Images/s of a step that says how many it did; what it does at first does not count."""
    end_of_warm_up = time.perf_counter() + min(WARM_UP_S, seconds)
    while time.perf_counter() < end_of_warm_up:
        step()
    started, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds or done == 0:
        done += step()
    return done / elapsed
