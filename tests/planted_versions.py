"""Versions that pass every gate of publication and should still not be promoted."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fruitstand.artefacts import sha256_file, write_json
from fruitstand.contract import FRUIT_RESNET, PROBABILITIES
from fruitstand.repository.versions import GOLDEN_LIST, MANIFEST_NAME


def repeat_version(repository: Path, source: int, number: int) -> Path:
    """Add a version with the files of another one; its folder."""
    directory = Path(
        shutil.copytree(repository / FRUIT_RESNET / str(source), repository / FRUIT_RESNET / str(number))
    )
    manifest = json.loads((directory / MANIFEST_NAME).read_text())
    write_json(directory / MANIFEST_NAME, manifest | {"version": number})
    return directory


def swap_two_labels(repository: Path, source: int, number: int) -> None:
    """Add a version that confuses the first two classes, as one trained on swapped folders does.

    Its golden answers and its manifest agree with it, so nothing but other images' answers gives it away.

    Args:
        repository: changed.
        source: the version it is made of.
        number: of the new one.
    """
    directory = repeat_version(repository, source, number)
    for path in directory.glob("*.onnx"):
        model = onnx.load(path)
        graph = model.graph
        last = next(node for node in graph.node if PROBABILITIES in node.output)
        last.output[list(last.output).index(PROBABILITIES)] = "in_order"
        (answer,) = (one for one in graph.output if one.name == PROBABILITIES)
        order = np.arange(answer.type.tensor_type.shape.dim[1].dim_value)
        order[:2] = 1, 0
        graph.initializer.append(numpy_helper.from_array(order, "order"))
        graph.node.append(helper.make_node("Gather", ["in_order", "order"], [PROBABILITIES], axis=1))
        onnx.save(model, path)
    golden = json.loads((directory / GOLDEN_LIST).read_text())
    for one in golden["images"]:
        one["probabilities"][:2] = reversed(one["probabilities"][:2])
    write_json(directory / GOLDEN_LIST, golden)
    manifest = json.loads((directory / MANIFEST_NAME).read_text())
    for name, entry in manifest["files"].items():
        entry.update(sha256=sha256_file(directory / name), size_bytes=(directory / name).stat().st_size)
    write_json(directory / MANIFEST_NAME, manifest)
