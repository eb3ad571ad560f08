"""Bring an ONNX classifier to the contract: `PIXELS` uint8 NHWC of any batch in, `PROBABILITIES` out.

Which rewriting a file stands is found by trying: each form is checked by ONNX's own checker, then it has to
answer batches of 1, 2 and 8 as the original answers one image at a time. The first form that does is taken.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, version_converter

from export.adopt.original import NCHW, Original, Signature
from export.gates.structure import MAX_OPSET
from export.onnx.graph import IR_VERSION, OPSET, expose_features
from export.onnx.metadata import write_model
from fruitstand.contract import FEATURES, PIXELS, PROBABILITIES
from fruitstand.errors import ArtefactError
from fruitstand.model.network import scale_and_shift
from fruitstand.model.session import open_session

CHECKED_BATCHES = (1, 2, 8)
MIN_OPSET = 13
"""An older file is converted where it can be: int8 per channel needs 13."""
PREFIX = "adopted."
"""Of every name that came with the file, so that none is one of ours."""
_FLOATS = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16, np.float64: TensorProto.DOUBLE}


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """One way to rewrite the graph."""

    convert_opset: bool
    free_batch: bool
    """Constants that begin with the fixed batch, shapes and joined tensors, take the batch as it comes."""
    byte_network: bool
    """Behind the first Cast, to float, comes one back to uint8: the network computes with bytes."""
    expose_features: bool
    """What the last layer reads becomes a second output."""


def _forms(signature: Signature) -> Iterator[Form]:
    is_read = MIN_OPSET <= signature.opset <= MAX_OPSET
    conversions = [False] if is_read else [True, False]
    bytes_ = [False, True] if signature.input_type is np.uint8 else [False]
    for convert, free, byte_network, features in itertools.product(
        conversions, [False, True], bytes_, [True, False]
    ):
        yield Form(
            convert_opset=convert, free_batch=free, byte_network=byte_network, expose_features=features
        )


def rewrite(original: Original, pixels_nhwc_u8: np.ndarray) -> onnx.ModelProto:
    """The model that is served in the original's place.

    Args:
        original: the file as it came.
        pixels_nhwc_u8: at least 8 images to compare the answers on.

    Raises:
        ArtefactError: no form answers as the original does, at every batch size; says what went wrong.
    """
    source = original.signature.path
    expected = original.probabilities(pixels_nhwc_u8[: max(CHECKED_BATCHES)])
    failures: list[tuple[int, str]] = []
    with TemporaryDirectory(prefix="fruitstand-adopt-") as scratch:
        trial = Path(scratch) / "trial.onnx"
        for form in _forms(original.signature):
            try:
                model = _rewritten(original, form)
                write_model(model, trial)
                onnx.checker.check_model(model, full_check=True)
            except Exception as exc:  # protobuf, the converter and the checker raise a dozen kinds
                failures.append((0, f"cannot be rewritten ({_line(exc)})"))
                continue
            batch, reason = _wrong_batch(trial, pixels_nhwc_u8, expected, original.max_abs_diff)
            if batch is None:
                return model
            failures.append((batch, f"its batch cannot be made dynamic: a batch of {batch} {reason}"))
    batch, reason = max(failures, key=lambda failure: failure[0])
    raise ArtefactError(f"{source}: {reason}" + ("; export it with a dynamic batch axis" if batch else ""))


def _line(exc: Exception) -> str:
    lines = [line for line in str(exc).splitlines() if line.strip()]
    return lines[0].strip()[:200] if lines else type(exc).__name__


def _wrong_batch(
    path: Path, pixels_nhwc_u8: np.ndarray, expected: np.ndarray, max_abs_diff: float
) -> tuple[int | None, str]:
    """The first batch size that fails or is answered otherwise than one by one, and how."""
    silent = onnxruntime.RunOptions()
    silent.log_severity_level = 4  # what fails here is told by the error alone
    try:
        session = open_session(path)
    except ArtefactError as exc:
        return 1, f"cannot be loaded ({_line(exc)})"
    for size in CHECKED_BATCHES:
        try:
            (got,) = session.run([PROBABILITIES], {PIXELS: pixels_nhwc_u8[:size]}, silent)
        except Exception as exc:  # ONNX Runtime raises one class per status code, with no common base
            return size, f"fails ({_line(exc)})"
        if got.shape != expected[:size].shape:
            return size, f"is answered with {list(got.shape)}, expected {list(expected[:size].shape)}"
        difference = float(np.abs(got - expected[:size]).max())
        if not difference <= max_abs_diff:
            return size, f"differs from one by one by {difference:.2g}, allowed {max_abs_diff:.2g}"
    return None, ""


def _rewritten(original: Original, form: Form) -> onnx.ModelProto:
    signature = original.signature
    model = onnx.ModelProto()
    model.CopyFrom(signature.model)
    if form.convert_opset:
        model = version_converter.convert_version(model, OPSET)
    graph = model.graph
    # Files of IR version 3 list their weights as inputs too.
    weights = {one.name for one in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    del graph.input[:], graph.value_info[:], model.metadata_props[:]
    graph.input.extend(inputs)
    _name_constants(graph)
    for number, node in enumerate(graph.node):
        node.name = f"{number}.{node.name or node.op_type}"  # the quantiser tells nodes apart by their names
        node.doc_string = ""
    if form.free_batch:
        _free_reshapes(graph, signature.fixed_batch or 1)
        _free_joins(graph)
    model = onnx.compose.add_prefix(model, PREFIX)
    model.ir_version = IR_VERSION
    _put_in_front(model.graph, original, form)
    _put_behind(model.graph, original)
    if form.expose_features:
        expose_features(model)
        if len(model.graph.output) == 1:
            raise ValueError(f"no last layer with constant weights, so no {FEATURES}")
    return model


def _name_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initializers, where the quantiser and `expose_features` look for weights."""
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _free_reshapes(graph: onnx.GraphProto, fixed_batch: int) -> None:
    """Let reshapes whose constant shape begins with the batch take any: [1, 512] becomes [-1, 512]."""
    constants = {one.name: one for one in graph.initializer}
    for number, node in enumerate(list(graph.node)):
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]]).copy()
        if len(shape) < 2 or shape[0] != fixed_batch:
            continue
        shape[0] = 0 if -1 in shape else -1  # 0 takes the input's own first axis
        name = f"free_shape_{number}"  # of its own: another node may read the old constant
        graph.initializer.append(numpy_helper.from_array(shape, name))
        node.input[1] = name


def _free_joins(graph: onnx.GraphProto) -> None:
    """Repeat a constant of batch 1 that is joined to each image's own, as a transformer's class token is."""
    constants = {one.name: one for one in graph.initializer}
    nodes = []
    for number, node in enumerate(graph.node):
        joined = [name for name in node.input if name in constants and constants[name].dims[:1] == [1]]
        own = [name for name in node.input if name not in constants]
        if node.op_type == "Concat" and own and joined and node.attribute[0].i != 0:
            shape, batch = f"join_{number}_shape", f"join_{number}_batch"
            graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), f"join_{number}_first"))
            nodes.append(helper.make_node("Shape", [own[0]], [shape], name=shape))
            nodes.append(helper.make_node("Gather", [shape, f"join_{number}_first"], [batch], name=batch))
            for name in joined:
                rest, target, repeated = (f"join_{number}_{part}_{name}" for part in ("rest", "target", "of"))
                dims = np.array(constants[name].dims[1:], np.int64)
                graph.initializer.append(numpy_helper.from_array(dims, rest))
                nodes.append(helper.make_node("Concat", [batch, rest], [target], name=target, axis=0))
                nodes.append(helper.make_node("Expand", [name, target], [repeated], name=repeated))
                node.input[list(node.input).index(name)] = repeated
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _put_in_front(graph: onnx.GraphProto, original: Original, form: Form) -> None:
    """Cast, layout and normalisation, in the order in which a run's own export has them."""
    signature = original.signature
    (value,) = graph.input
    steps: list[onnx.NodeProto] = [helper.make_node("Cast", [], [], to=TensorProto.FLOAT)]
    if original.layout == NCHW:
        steps.append(helper.make_node("Transpose", [], [], perm=[0, 3, 1, 2]))
    if signature.input_type is np.uint8:
        steps += [helper.make_node("Cast", [], [], to=TensorProto.UINT8)] if form.byte_network else []
    else:
        shape = (1, 3, 1, 1) if original.layout == NCHW else (1, 1, 1, 3)
        scale, shift = scale_and_shift(original.preprocessing)
        for operator, name, array in (("Mul", "scale", scale), ("Add", "shift", shift)):
            graph.initializer.append(numpy_helper.from_array(array.numpy().reshape(shape), name))
            steps.append(helper.make_node(operator, ["", name], []))
        if signature.input_type is not np.float32:
            steps.append(helper.make_node("Cast", [], [], to=_FLOATS[signature.input_type]))
    name = PIXELS
    for number, step in enumerate(steps):
        step.name = f"pixels_{number}.{step.op_type}"
        step.input[:] = [name, *step.input[1:]]
        name = value.name if number == len(steps) - 1 else step.name
        step.output[:] = [name]
    nodes = [*steps, *graph.node]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    shape = ["batch", *original.preprocessing.input_size, 3]
    graph.input.append(helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, shape))


def _put_behind(graph: onnx.GraphProto, original: Original) -> None:
    """One output, fp32, a row of probabilities an image."""
    value = next(one for one in graph.output if one.name == PREFIX + original.output_name)
    steps: list[onnx.NodeProto] = []
    if value.type.tensor_type.elem_type != TensorProto.FLOAT:
        steps.append(helper.make_node("Cast", [], [], to=TensorProto.FLOAT))
    if original.output_rank > 2:
        steps.append(helper.make_node("Flatten", [], [], axis=1))
    if not original.gives_probabilities:
        steps.append(helper.make_node("Softmax", [], [], axis=1))
    if not steps:
        steps.append(helper.make_node("Identity", [], []))
    name = value.name
    for number, step in enumerate(steps):
        step.name = f"probabilities_{number}.{step.op_type}"
        step.input[:] = [name]
        name = PROBABILITIES if number == len(steps) - 1 else step.name
        step.output[:] = [name]
    graph.node.extend(steps)
    del graph.output[:]
    num_classes = original.num_classes
    graph.output.append(
        helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["batch", num_classes])
    )
