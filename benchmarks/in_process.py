"""Speed of decode and model without a server: each alone, and three ways to combine them.

On a GPU the pixels stay in its memory from the decoder to the model, also for `infer` alone.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from fruitstand.contract import (
    CPU_CONFIG,
    ENCODED,
    FRUIT_RESNET,
    IMAGE_SUFFIXES,
    MAX_BATCH_SIZE,
    PIXELS,
    PROBABILITIES,
)
from fruitstand.errors import DataError, ServerError, UsageError
from fruitstand.images.dali_pipeline import load_pipeline_definition, served_pipeline
from fruitstand.machine.threads import thread_budget
from fruitstand.repository.versions import serving_state
from scoring.model import read_config
from serving.engine.onnx_session import execution_providers, open_session

BATCH = 32
WARM_UP_S = 0.5
GPU_CONFIGS = ("gpu", "gpu-trt")
"""Server configurations that use a GPU."""
GPU_LOOPS = 4
"""Parallel loops on a GPU; on a CPU there is one per thread."""
LOOPS = ("sequential", "overlapped", "parallel")
"""Decode then model, each with all threads; decode of the next batch meanwhile; one loop per thread."""

Batch = Sequence[np.ndarray]
Pixels = Any
"""(N, H, W, 3) uint8: a numpy array, or DALI's tensor or ONNX Runtime's value on a GPU."""
Measure = Callable[[float], float]
"""Runs for this many seconds and returns images/s."""


def in_process_images_per_s(repository: Path, images: Path, seconds: float) -> float:
    """Images/s of the fastest loop, with the served version's engine."""
    measures = in_process(repository, served_version(repository), read_images(images))
    return round(max(measures[name](seconds) for name in LOOPS), 1)


def served_version(repository: Path) -> Path:
    """Folder of the served version.

    Raises:
        DataError: the repository serves no version.
    """
    state = serving_state(repository)
    if state is None:
        raise DataError(f"{repository}: serves no version; publish one with fruitstand export")
    return repository / FRUIT_RESNET / str(state.version)


def read_images(folder: Path) -> list[np.ndarray]:
    """Read up to 512 encoded images from a folder.

    Raises:
        DataError: fewer than `BATCH` images.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)[:512]
    if len(paths) < BATCH:
        raise DataError(f"{folder}: {len(paths)} images, at least {BATCH} are needed")
    return [np.frombuffer(path.read_bytes(), np.uint8) for path in paths]


def in_process(
    repository: Path, version: Path, files: Batch, config_name: str = CPU_CONFIG
) -> dict[str, Measure]:
    """Measurements with the served pipeline file, ONNX file and engine, without a server.

    Raises:
        ServerError: the installed ONNX Runtime cannot use the configuration's engine.
        UsageError: there is no such configuration.
    """
    if config_name not in (CPU_CONFIG, *GPU_CONFIGS):
        raise UsageError(f"--config-name {config_name}: allowed {', '.join((CPU_CONFIG, *GPU_CONFIGS))}")
    on_gpu = config_name in GPU_CONFIGS
    device_id = 0 if on_gpu else None
    config = read_config(repository / FRUIT_RESNET / "configs" / f"{config_name}.pbtxt")

    def infer_with(num_threads: int | None = None) -> Infer:
        session = open_session(version, config, device_id=device_id, num_threads=num_threads)
        (asked, *_), *_ = execution_providers(config, device_id=device_id)
        if session.get_providers()[0] != asked:  # a server would fall back to another engine
            raise ServerError(f"{asked} cannot be used here: install what {config_name} needs")
        if on_gpu:
            return _bound(session)
        return lambda batch: len(session.run([PROBABILITIES], {PIXELS: batch})[0])

    decode, infer = decoder(repository, files, on_gpu=on_gpu), infer_with()
    pixels = decode()
    if on_gpu:
        pixels = onnxruntime.OrtValue.ortvalue_from_numpy(np.array(pixels.as_cpu()), "cuda", 0)
    else:
        pixels = pixels.copy()  # the next decode overwrites it
    # Two decoders alternate, because one decodes while the other's output is read.
    decoders = itertools.cycle([decode, decoder(repository, files, on_gpu=on_gpu)])
    num_loops = GPU_LOOPS if on_gpu else thread_budget()
    threads = max(1, thread_budget() // num_loops)
    pairs = [
        (decoder(repository, files, num_threads=threads, on_gpu=on_gpu), infer_with(threads))
        for _ in range(num_loops)
    ]
    return {
        "decode": lambda seconds: timed(seconds, lambda: _num_images(decode())),
        "infer": lambda seconds: timed(seconds, lambda: infer(pixels)),
        "sequential": lambda seconds: timed(seconds, lambda: infer(decode())),
        "overlapped": lambda seconds: _overlapped(seconds, lambda: next(decoders)(), infer),
        "parallel": lambda seconds: _parallel(seconds, pairs),
    }


Decode = Callable[[], Pixels]
Infer = Callable[[Pixels], int]
"""Returns the number of images."""


def _overlapped(seconds: float, decode: Decode, infer: Infer) -> float:
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(decode)

        def step() -> int:
            nonlocal pending
            batch, pending = pending.result(), pool.submit(decode)
            return infer(batch)

        return timed(seconds, step)


def _parallel(seconds: float, pairs: list[tuple[Decode, Infer]]) -> float:
    """Run each pair in its own thread; DALI and ONNX Runtime release the GIL."""
    with ThreadPoolExecutor(len(pairs)) as pool:
        rates = [
            pool.submit(timed, seconds, lambda decode=decode, infer=infer: infer(decode()))
            for decode, infer in pairs
        ]
        return sum(rate.result() for rate in rates)


def decoder(
    repository: Path,
    files: Batch,
    *,
    num_threads: int | None = None,
    on_gpu: bool = False,
) -> Decode:
    """A function that decodes the next `BATCH` images; each call overwrites the last pixels."""
    options = {} if num_threads is None else {"num_threads": num_threads}
    if on_gpu:
        os.environ["FRUITSTAND_DECODE_DEVICE"] = "gpu"  # the pipeline file reads it
    define = load_pipeline_definition(served_pipeline(repository)).define
    pipeline = define(batch_size=MAX_BATCH_SIZE, device_id=0 if on_gpu else None, **options)
    pipeline.build()
    batches = _batches(files)

    def decode() -> Pixels:
        pipeline.feed_input(ENCODED, next(batches))
        (output,) = pipeline.run()
        return output.as_tensor() if on_gpu else np.asarray(output.as_tensor())

    return decode


def _num_images(pixels: Pixels) -> int:
    return int(pixels.shape[0] if isinstance(pixels, np.ndarray) else pixels.shape()[0])


def _bound(session: onnxruntime.InferenceSession) -> Infer:
    """A function that runs the model on pixels in GPU memory, without a copy."""

    def infer(pixels: Pixels) -> int:
        binding = session.io_binding()
        if isinstance(pixels, onnxruntime.OrtValue):
            binding.bind_ortvalue_input(PIXELS, pixels)
        else:
            binding.bind_input(PIXELS, "cuda", 0, np.uint8, pixels.shape(), pixels.data_ptr())
        binding.bind_output(PROBABILITIES)
        session.run_with_iobinding(binding)
        return len(binding.copy_outputs_to_cpu()[0])

    return infer


def _batches(files: Batch) -> Iterator[list[np.ndarray]]:
    """Batches of `BATCH` files, cycling forever."""
    endless = itertools.cycle(files)
    while True:
        yield list(itertools.islice(endless, BATCH))


def timed(seconds: float, step: Callable[[], int]) -> float:
    """Images/s of a step that returns its number of images, after a warm-up."""
    end_of_warm_up = time.perf_counter() + min(WARM_UP_S, seconds)
    while time.perf_counter() < end_of_warm_up:
        step()
    started, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds or done == 0:
        done += step()
    return done / elapsed
