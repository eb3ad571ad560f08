"""What decode and model do without a server: each alone, and three ways to run one after the other.

On a GPU the pixels stay there from the decoder to the model; `infer` alone has them there as well.
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
"""Names of a server's configurations that compute on a GPU."""
GPU_LOOPS = 4
"""Loops side by side on a GPU; on a CPU there is one for each thread."""
LOOPS = ("sequential", "overlapped", "parallel")
"""Decode and model with all threads each in turn; the next batch decoded meanwhile; a loop a thread."""

Batch = Sequence[np.ndarray]
Pixels = Any
"""(N, H, W, 3) uint8: a numpy array, or DALI's tensor or ONNX Runtime's value on a GPU."""
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


def in_process(
    repository: Path, version: Path, files: Batch, config_name: str = CPU_CONFIG
) -> dict[str, Measure]:
    """The same pipeline file, ONNX file and engine as served, without a server.

    Args:
        repository: with a served version.
        version: its folder.
        files: encoded images, at least `BATCH`.
        config_name: of the server's configuration that it is compared with.

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
        if session.get_providers()[0] != asked:  # a server would go on with another engine
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
    # Two, in turns: what one of them decoded is read while the other one decodes.
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
    """Each pair on a thread of its own: DALI and ONNX Runtime compute without Python's lock."""
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
    batch: int = BATCH,
    on_gpu: bool = False,
) -> Decode:
    """Decodes the next `batch` images at each call; the pixels are overwritten by the next."""
    options = {} if num_threads is None else {"num_threads": num_threads}
    if on_gpu:
        os.environ["FRUITSTAND_DECODE_DEVICE"] = "gpu"  # read by the pipeline's file
    define = load_pipeline_definition(served_pipeline(repository)).define
    pipeline = define(batch_size=MAX_BATCH_SIZE, device_id=0 if on_gpu else None, **options)
    pipeline.build()
    batches = _batches(files, batch)

    def decode() -> Pixels:
        pipeline.feed_input(ENCODED, next(batches))
        (output,) = pipeline.run()
        return output.as_tensor() if on_gpu else np.asarray(output.as_tensor())

    return decode


def _num_images(pixels: Pixels) -> int:
    return int(pixels.shape[0] if isinstance(pixels, np.ndarray) else pixels.shape()[0])


def _bound(session: onnxruntime.InferenceSession) -> Infer:
    """Reads pixels where they lie."""

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
