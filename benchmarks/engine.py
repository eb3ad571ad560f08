r"""What could make the loop without a server faster: session and decoder, one option changed at a time.

    python -m benchmarks.engine --repository model_repository --images DIR \
        --out benchmarks/results/engine_HARDWARE_DATE_COMMIT.json

The served file with the settings of an untuned repository, and the tries, in turns, `--rounds` times over;
each try is a ratio to that within its round. What is faster and gives the same answers belongs into the
exported configuration.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import typer

from benchmarks.in_process import (
    ENGINES,
    PROVIDERS,
    Measure,
    decoder,
    read_images,
    served_version,
    timed,
)
from benchmarks.provenance import provenance
from benchmarks.ratios import ratio
from benchmarks.stages import command_line, console
from fruitstand.artefacts import read_json, write_json
from fruitstand.contract import PIXELS, PROBABILITIES
from fruitstand.threads import thread_budget
from fruitstand.versions import MANIFEST_NAME

Infer = Callable[[np.ndarray], np.ndarray]

BATCHES = (1, 4, 8, 16, 64, 128)
DECODE_BATCHES = (1, 8, 64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Try:
    """A session that differs from the served one."""

    session: dict[str, Any] = field(default_factory=dict)
    """Attributes of `SessionOptions`."""
    config: dict[str, str] = field(default_factory=dict)
    """Entries of its configuration."""
    provider: dict[str, str] = field(default_factory=dict)
    """Options of the execution provider."""
    device: dict[str, Any] = field(default_factory=dict)
    """Properties of OpenVINO's CPU device."""
    num_sessions: int = 1
    """Beside each other, the threads divided among them."""


_LEVEL = onnxruntime.GraphOptimizationLevel
TRIES: dict[str, dict[str, Try]] = {
    "ort": {
        "graph_basic": Try(session={"graph_optimization_level": _LEVEL.ORT_ENABLE_BASIC}),
        "graph_extended": Try(session={"graph_optimization_level": _LEVEL.ORT_ENABLE_EXTENDED}),
        "no_memory_pattern": Try(session={"enable_mem_pattern": False}),
        "no_arena": Try(session={"enable_cpu_mem_arena": False}),
        "parallel_operators": Try(session={"execution_mode": onnxruntime.ExecutionMode.ORT_PARALLEL}),
        "threads_sleep": Try(config={"session.intra_op.allow_spinning": "0"}),
        "threads_take_small_parts": Try(config={"session.dynamic_block_base": "4"}),
        "denormals_are_zero": Try(config={"session.set_denormal_as_zero": "1"}),
        "a_session_a_core": Try(num_sessions=thread_budget()),
    },
    "openvino": {
        "pinned": Try(device={"ENABLE_CPU_PINNING": True}),
        "hint_throughput": Try(device={"PERFORMANCE_HINT": "THROUGHPUT"}),
        "two_streams": Try(provider={"num_streams": "2"}),
        "bf16": Try(device={"INFERENCE_PRECISION_HINT": "bf16"}),
        "no_dynamic_shapes": Try(provider={"disable_dynamic_shapes": "true"}),
        "graph_optimised_by_ort": Try(session={"graph_optimization_level": _LEVEL.ORT_ENABLE_EXTENDED}),
        "a_session_a_core": Try(num_sessions=thread_budget()),
    },
}


def main(
    repository: Annotated[Path, typer.Option(help="Model repository with a served version.")],
    images: Annotated[Path, typer.Option(help="Folder with images.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured.")] = 5,
    seconds: Annotated[float, typer.Option(help="For each measurement.")] = 2.0,
) -> None:
    """Measure and write the result."""
    version, files = served_version(repository), read_images(images)
    serve = read_json(version / MANIFEST_NAME)["serve"]
    engine = ENGINES[serve["cpu_engine"]]
    pixels = decoder(repository, files)().copy()
    measures, agreement = _sessions(version / serve["cpu_model"], engine, pixels)
    measures |= _decoders(repository, files)
    samples: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds):
        for name, measure in measures.items():
            samples[name].append(round(measure(seconds), 1))
            console.print(f"{number + 1}/{rounds} {name}: {samples[name][-1]} images/s")
    result = {
        **provenance(),
        "settings": {"file": serve["cpu_model"], "engine": engine, "rounds": rounds, "seconds": seconds},
        "samples": samples,
        "summary": {"over_served": summarise(samples), "agreement": agreement},
    }
    write_json(out, result)
    print(out)


def summarise(samples: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Of each try the ratio to what is served, `infer` or `decode`, within rounds."""
    return {name: ratio(rates, samples[name.partition(":")[0]]) for name, rates in samples.items()}


def _sessions(
    path: Path, engine: str, pixels: np.ndarray
) -> tuple[dict[str, Measure], dict[str, float | str]]:
    """How fast each computes, and in how many images its best class is the served session's."""
    served = _infer(path, engine, Try())
    expected = served(pixels).argmax(axis=1)
    measures: dict[str, Measure] = {"infer": _rate(served, pixels)}
    agreement: dict[str, float | str] = {}
    for size in BATCHES:
        batch = np.concatenate([pixels] * -(-size // len(pixels)))[:size]
        measures[f"infer:batch_{size}"] = _rate(served, batch)
    for name, one in TRIES[engine].items():
        try:
            infer = _infer(path, engine, one)
            agreement[name] = round(float((infer(pixels).argmax(axis=1) == expected).mean()), 4)
        except Exception as exc:  # ONNX Runtime's errors have no common base; that it refuses is the result
            agreement[name] = f"refused: {str(exc).splitlines()[0][:120]}"
            continue
        measures[f"infer:{name}"] = _rate(infer, pixels)
    return measures, agreement


def _rate(infer: Infer, batch: np.ndarray) -> Measure:
    return lambda seconds: timed(seconds, lambda: len(infer(batch)))


def _infer(path: Path, engine: str, one: Try) -> Infer:
    """One call computes the batch, divided among the sessions."""
    sessions = [_session(path, engine, one) for _ in range(one.num_sessions)]
    if len(sessions) == 1:
        return lambda batch: sessions[0].run([PROBABILITIES], {PIXELS: batch})[0]
    pool = ThreadPoolExecutor(len(sessions))

    def one_part(session: onnxruntime.InferenceSession, part: np.ndarray) -> np.ndarray:
        return session.run([PROBABILITIES], {PIXELS: part})[0]

    return lambda batch: np.concatenate(
        list(pool.map(one_part, sessions, np.array_split(batch, len(sessions))))
    )


def _session(path: Path, engine: str, one: Try) -> onnxruntime.InferenceSession:
    num_threads = max(1, thread_budget() // one.num_sessions)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = num_threads
    for name, value in one.session.items():
        setattr(options, name, value)
    for key, value in one.config.items():
        options.add_session_config_entry(key, value)
    own: dict[str, str] = {}
    if engine == "openvino":
        device = {"CPU": {"ENABLE_CPU_PINNING": False, **one.device}}
        own = {
            "device_type": "CPU",
            "num_of_threads": str(num_threads),
            "load_config": json.dumps(device),
        }
    return onnxruntime.InferenceSession(path, options, providers=[(PROVIDERS[engine], own | one.provider)])


def _decoders(repository: Path, files: list[np.ndarray]) -> dict[str, Measure]:
    chosen: dict[str, dict[str, int]] = {"decode": {}}
    chosen |= {f"decode:threads_{count}": {"num_threads": count} for count in (1, 2 * thread_budget())}
    chosen |= {f"decode:batch_{size}": {"batch": size} for size in DECODE_BATCHES}
    measures: dict[str, Measure] = {}
    for name, options in chosen.items():
        decode = decoder(repository, files, **options)
        measures[name] = lambda seconds, decode=decode: timed(seconds, lambda: len(decode()))
    return measures


if __name__ == "__main__":
    command_line(main)
