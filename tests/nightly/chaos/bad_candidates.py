"""Candidates that should never be served, made from a good one."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper

from fruitstand.artefacts import read_json, sha256_file, write_json
from fruitstand.contract import PIXELS, PROBABILITIES
from fruitstand.labels import labels_sha256
from fruitstand.runs import META_NAME, WEIGHTS_NAME


def copy_candidate(candidate: Path, directory: Path) -> Path:
    """A copy to be changed, `<directory>/export`."""
    return shutil.copytree(candidate, directory / "export")


def reseal(candidate: Path, **changes: object) -> Path:
    """Make the manifest agree with altered files again, so that only what they contain can give them away."""
    path = candidate / "candidate.json"
    manifest = json.loads(path.read_text())
    for name, entry in manifest["files"].items():
        entry["sha256"] = sha256_file(candidate / name)
        entry["size_bytes"] = (candidate / name).stat().st_size
    path.write_text(json.dumps({**manifest, **changes}))
    return candidate


def models(candidate: Path) -> list[Path]:
    """Its ONNX files."""
    return sorted(candidate.glob("*.onnx"))


def truncated(candidate: Path) -> None:
    """A copy that was cut off half way."""
    for path in models(candidate):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reseal(candidate)


def wrong_classes(candidate: Path) -> None:
    """Labels of another model."""
    manifest = json.loads((candidate / "candidate.json").read_text())
    labels = [*manifest["labels"][:-1], "Durian"]
    reseal(candidate, labels=labels, labels_sha256=labels_sha256(labels))


def nan_weights(candidate: Path) -> None:
    """One weight of each file that is no number."""
    for path in models(candidate):
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16) and len(tensor.dims) >= 1:
                values = numpy_helper.to_array(tensor).copy()
                values.flat[0] = np.nan
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        onnx.save(model, path)
    reseal(candidate)


def wrong_input_shape(candidate: Path) -> None:
    """Another height than the contract's."""
    for path in models(candidate):
        model = onnx.load(path)
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value += 28
        onnx.save(model, path)
    reseal(candidate)


def external_data(candidate: Path) -> None:
    """Weights in a file outside of the folder."""
    for path in models(candidate):
        model = onnx.load(path)
        tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "../../../etc/hostname"
        tensor.ClearField("raw_data")
        onnx.save(model, path)
    reseal(candidate)


def failed_gate(candidate: Path) -> None:
    """A gate's number is that of a file that lost too much accuracy, and every flag says that it passed."""
    path = candidate / "candidate.json"
    manifest = json.loads(path.read_text())
    gate = next(gate for gate in manifest["gates"] if "top1_loss" in gate["name"])
    gate.update(value=0.3)
    path.write_text(json.dumps(manifest))


def unchecked(candidate: Path) -> None:
    """Its accuracy was never measured."""
    path = candidate / "candidate.json"
    manifest = json.loads(path.read_text())
    manifest["gates"] = [gate for gate in manifest["gates"] if "top1_loss" not in gate["name"]]
    path.write_text(json.dumps(manifest))


def other_answers(candidate: Path) -> None:
    """Its answers are shuffled: right in form, wrong in fact."""
    for path in models(candidate):
        model = onnx.load(path)
        graph = model.graph
        last = next(node for node in graph.node if PROBABILITIES in node.output)
        last.output[list(last.output).index(PROBABILITIES)] = "in_order"
        num_classes = graph.output[0].type.tensor_type.shape.dim[1].dim_value
        order = np.roll(np.arange(num_classes), 1)
        graph.initializer.append(numpy_helper.from_array(order, "order"))
        _insert_after(graph, last, helper.make_node("Gather", ["in_order", "order"], [PROBABILITIES], axis=1))
        onnx.save(model, path)
    reseal(candidate)


def _insert_after(graph: onnx.GraphProto, last: onnx.NodeProto, *nodes: onnx.NodeProto) -> None:
    """Before what reads the answer, the label sets: nodes stand in the order in which they run."""
    position = list(graph.node).index(last) + 1
    for offset, node in enumerate(nodes):
        graph.node.insert(position + offset, node)


def slow(candidate: Path, num_channels: int = 96) -> None:
    """The same answers with a convolution beside them that changes nothing and takes its time.

    Args:
        candidate: is changed.
        num_channels: of the convolution, whose time grows with the square: 96 take 12 ms an image on one core
            (AMD EPYC).
    """
    for path in models(candidate):
        model = onnx.load(path)
        graph = model.graph
        last = next(node for node in graph.node if PROBABILITIES in node.output)
        last.output[list(last.output).index(PROBABILITIES)] = "answer"
        weights = np.full((num_channels, 3, 5, 5), 1e-9, np.float32)
        wide = np.full((num_channels, num_channels, 5, 5), 1e-9, np.float32)
        graph.initializer.extend(
            [
                numpy_helper.from_array(weights, "slow_weights"),
                numpy_helper.from_array(wide, "slow_wide"),
                numpy_helper.from_array(np.float32(0), "nothing"),
            ]
        )
        _insert_after(
            graph,
            last,
            helper.make_node("Cast", [PIXELS], ["slow_float"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["slow_float"], ["slow_nchw"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["slow_nchw", "slow_weights"], ["slow_1"], strides=[2, 2]),
            helper.make_node("Conv", ["slow_1", "slow_wide"], ["slow_2"]),
            helper.make_node("ReduceMean", ["slow_2"], ["slow_mean"], keepdims=0),
            helper.make_node("Mul", ["slow_mean", "nothing"], ["slow_nothing"]),
            helper.make_node("Add", ["answer", "slow_nothing"], [PROBABILITIES]),
        )
        onnx.save(model, path)
    reseal(candidate)


def less_sure(run: Path, copy: Path) -> Path:
    """A copy of a run: the same classes win with other probabilities, which no temperature makes equal."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "export", ignore_errors=True)
    weights = safetensors.numpy.load_file(copy / WEIGHTS_NAME)
    weights["fc.weight"] = weights["fc.weight"] * np.float32(0.8)
    weights["fc.bias"] = weights["fc.bias"] + np.resize(np.float32([0.5, -0.5]), weights["fc.bias"].shape)
    safetensors.numpy.save_file(weights, copy / WEIGHTS_NAME)
    meta = read_json(copy / META_NAME)
    meta["weights_sha256"] = sha256_file(copy / WEIGHTS_NAME)
    write_json(copy / META_NAME, meta)
    return copy
