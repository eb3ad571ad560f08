"""Servers with a fault planted for real: in a copy of the repository, or in a copy of the backends."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from fruitstand.artefacts import read_json, sha256_file, write_json
from fruitstand.contract import FRUIT_RESNET, IMAGE_DECODE, PROBABILITIES
from fruitstand.repository.versions import GOLDEN_LIST, MANIFEST_NAME
from serving.triton import backend_directory
from serving.triton.embedded import EmbeddedServer
from tests.repositories import DECODE, edit

Plant = Callable[[Path], object]


def wrong_labels(repository: Path) -> None:
    """Two classes have each other's name."""
    path = repository / FRUIT_RESNET / "labels.txt"
    first, second, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([second, first, *rest]))


def other_preprocessing(repository: Path) -> None:
    """Shrunk without a filter."""
    _replace(repository / IMAGE_DECODE / "1" / "dali.py", "antialias=True", "antialias=False")


no_ragged_flag = edit(DECODE, lambda config: config.input[0].ClearField("allow_ragged_batch"))
no_queue_limit = edit(
    DECODE, lambda config: config.dynamic_batching.default_queue_policy.ClearField("max_queue_size")
)


def other_weights(repository: Path) -> None:
    """Another model under the same number: its manifest and its golden answers are its own."""
    version = repository / FRUIT_RESNET / "1"
    model = onnx.load(version / "model.onnx")
    last = next(node for node in model.graph.node if PROBABILITIES in node.output)
    last.output[list(last.output).index(PROBABILITIES)] = "in_order"
    num_classes = len(read_json(version / MANIFEST_NAME)["labels"])
    model.graph.initializer.append(numpy_helper.from_array(np.roll(np.arange(num_classes), 1), "order"))
    shuffle = helper.make_node("Gather", ["in_order", "order"], [PROBABILITIES], axis=1)
    # Before what reads the answer: the label sets.
    model.graph.node.insert(list(model.graph.node).index(last) + 1, shuffle)
    onnx.save(model, version / "model.onnx")
    golden = read_json(version / GOLDEN_LIST)
    for one in golden["images"]:
        one["probabilities"] = np.roll(one["probabilities"], 1).tolist()
    write_json(version / GOLDEN_LIST, golden)
    manifest = read_json(version / MANIFEST_NAME)
    for name, entry in manifest["files"].items():
        entry |= {
            "sha256": sha256_file(version / name),
            "size_bytes": (version / name).stat().st_size,
        }
    write_json(version / MANIFEST_NAME, manifest)


def no_isolation(backends: Path) -> None:
    """One bad image fails its whole batch, as NVIDIA's decoder does."""
    answers = "        answers = iter(self._step.run([one for one in feeds if isinstance(one, dict)]))\n"
    fail = (
        "        answers = list(answers)\n"
        "        if any(isinstance(one, str) for one in answers):\n"
        "            answers = ['unsupported format in this batch'] * len(answers)\n"
        "        answers = iter(answers)\n"
    )
    _replace(backends / "dali" / "model.py", answers, answers + fail)


def slow(backends: Path) -> None:
    """Every batch takes most of a second."""
    head = "    def execute(self, requests: list) -> list:\n"
    _replace(backends / "dali" / "model.py", head, f"{head}        __import__('time').sleep(0.7)\n")


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, "the fault looks for its place in vain"
    path.write_text(text.replace(old, new))


@contextmanager
def faulty_server(
    repository: Path, folder: Path, *, files: tuple[Plant, ...] = (), backends: tuple[Plant, ...] = ()
) -> Iterator[EmbeddedServer]:
    """A running server with faults, on the Python stubs: a fault is planted in their code.

    Args:
        repository: a good one, which is copied.
        folder: for the copies and the log.
        files: faults of the copy.
        backends: faults of the code that serves it.
    """
    copy = shutil.copytree(repository, folder / "model_repository")
    code = shutil.copytree(backend_directory.STUBS, folder / "backends")
    for plant in files:
        plant(copy)
    for plant in backends:
        plant(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend_directory, "STUBS", code)
        patch.setenv(backend_directory.BACKENDS_VARIABLE, backend_directory.STUB)
        # The embedded server looks at its golden images when it starts; NVIDIA's container does not.
        patch.setattr("serving.triton.readiness.MAX_GOLDEN_DISTANCE", 1.0)
        with EmbeddedServer(copy, log_path=folder / "triton.log") as server:
            yield server
