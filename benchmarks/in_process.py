"""What decode and model do without a server: each alone, and three ways to run one after the other.

On a GPU the pixels stay there from the decoder to the model; `infer` alone has them there as well.
"""

import ctypes
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from fruitstand.artefacts import read_json
from fruitstand.contract import (
    CPU_CONFIG,
    ENCODED,
    FRUIT_RESNET,
    IMAGE_SUFFIXES,
    MAX_BATCH_SIZE,
    PIXELS,
    PROBABILITIES,
)
from fruitstand.errors import DataError, UsageError
from fruitstand.images.dali_pipeline import load_pipeline_definition, served_pipeline
from fruitstand.machine.threads import thread_budget
from fruitstand.model.session import create_session
from fruitstand.repository.versions import MANIFEST_NAME, serving_state

BATCH = 32
WARM_UP_S = 0.5
PROVIDERS = {
    "ort": "CPUExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
OPTIONS: dict[str, dict[str, str]] = {
    # Without pinning, as served: sessions beside each other would share cores.
    "openvino": {"device_type": "CPU", "load_config": '{"CPU": {"ENABLE_CPU_PINNING": false}}'},
    "cuda": {"cudnn_conv_algo_search": "HEURISTIC"},
    "tensorrt": {"trt_fp16_enable": "1"},
}
GPU_ENGINES = {"gpu": "cuda", "gpu-trt": "tensorrt"}
"""Of a server's configurations."""
GPU_LOOPS = 4
"""Beside each other on a GPU; on a processor it is one a thread."""
ENGINES = {"cpu": "ort", "openvino": "openvino"}
"""Names of the manifest's engines among those."""
VARIANTS = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
GPU_VARIANTS = {"fp32": "model.onnx", "fp16": "model.fp16.onnx"}
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
    """The same pipeline file, ONNX files and engines as served, without a server.

    Args:
        repository: with a served version.
        version: its folder.
        files: encoded images, at least `BATCH`.
        config_name: of the server's configuration that it is compared with.

    Raises:
        DataError: the installed ONNX Runtime has not the configuration's engine, or the version not its file.
        UsageError: there is no such configuration.
    """
    if config_name not in (CPU_CONFIG, *GPU_ENGINES):
        raise UsageError(f"--config-name {config_name}: allowed {', '.join((CPU_CONFIG, *GPU_ENGINES))}")
    on_gpu = config_name in GPU_ENGINES
    decode = decoder(repository, files, on_gpu=on_gpu)
    pixels = _to_host(decode())
    measures: dict[str, Measure] = {"decode": lambda seconds: timed(seconds, lambda: _num_images(decode()))}
    for variant, file in (GPU_VARIANTS if on_gpu else VARIANTS).items():
        for engine in PROVIDERS:
            if (version / file).is_file() and (infer := _infer(version / file, engine)):
                where = _on_gpu(pixels) if engine in GPU_ENGINES.values() else pixels
                measures[f"infer_{variant}_{engine}"] = lambda seconds, infer=infer, where=where: timed(
                    seconds, lambda: infer(where)
                )
    serve = read_json(version / MANIFEST_NAME)["serve"]
    path, engine = version / serve["cpu_model"], ENGINES[serve["cpu_engine"]]
    if on_gpu:
        path, engine = version / GPU_VARIANTS["fp16"], GPU_ENGINES[config_name]
    if not path.is_file():
        raise DataError(f"{path}: no such file; export the run again")

    def infer_with(num_threads: int | None = None) -> Infer:
        if (infer := _infer(path, engine, num_threads=num_threads)) is None:
            raise DataError(f"{PROVIDERS[engine]} cannot be used here: install what {config_name} needs")
        return infer

    infer = infer_with()
    measures["sequential"] = lambda seconds: timed(seconds, lambda: infer(decode()))
    # Two, in turns: what one of them decoded is read while the other one decodes.
    decoders = itertools.cycle([decode, decoder(repository, files, on_gpu=on_gpu)])
    measures["overlapped"] = lambda seconds: _overlapped(seconds, lambda: next(decoders)(), infer)
    num_loops = GPU_LOOPS if on_gpu else thread_budget()
    threads = max(1, thread_budget() // num_loops)
    pairs = [
        (decoder(repository, files, num_threads=threads, on_gpu=on_gpu), infer_with(threads))
        for _ in range(num_loops)
    ]
    measures["parallel"] = lambda seconds: _parallel(seconds, pairs)
    return measures


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
    define = load_pipeline_definition(served_pipeline(repository))
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


def _to_host(pixels: Pixels) -> np.ndarray:
    return np.array(pixels if isinstance(pixels, np.ndarray) else pixels.as_cpu())


def _on_gpu(pixels: np.ndarray) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy(pixels, "cuda", 0)


def _infer(path: Path, engine: str, *, num_threads: int | None = None) -> Infer | None:
    """None where the installed ONNX Runtime cannot use the engine."""
    provider = PROVIDERS[engine]
    if provider not in onnxruntime.get_available_providers():
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    own = dict(OPTIONS.get(engine, {}))
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
        if engine == "openvino":
            own["num_of_threads"] = str(num_threads)
    on_gpu = engine in GPU_ENGINES.values()
    if on_gpu:  # where pip puts NVIDIA's libraries no loader looks
        onnxruntime.preload_dlls()
    # ONNX Runtime lists TensorRT without its libraries, too.
    if engine == "tensorrt" and not _is_loadable("libnvinfer.so.10"):
        return None
    session = create_session(path, options, [(provider, own)])
    if session.get_providers()[0] != provider:
        return None
    return _bound(session) if on_gpu else lambda batch: len(session.run([PROBABILITIES], {PIXELS: batch})[0])


def _is_loadable(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


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
