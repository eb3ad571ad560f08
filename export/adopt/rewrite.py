"""Rewrite an ONNX classifier to the contract: `PIXELS` uint8 NHWC of any batch in, `PROBABILITIES` out.

The rewrites are tried in order. Each result must pass ONNX's checker, and answer batches of 1, 2 and 8 like
the original answers single images. The first that does is used.
"""

import itertools
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, version_converter

from export.adopt.original import NCHW, Original
from export.gates.structure import MAX_OPSET
from export.onnx.graph import IR_VERSION, OPSET, expose_features
from export.onnx.metadata import write_model
from fruitstand.contract import PIXELS, PROBABILITIES
from fruitstand.errors import ArtefactError
from fruitstand.model.network import scale_and_shift
from fruitstand.model.session import open_session

CHECKED_BATCHES = (1, 2, 8)
MIN_OPSET = 13
"""Older files are converted if possible, because int8 per channel needs 13."""
PREFIX = "adopted."
"""Added to all names of the original, so that none of them equals one of ours."""
_FLOATS = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16, np.float64: TensorProto.DOUBLE}


def rewrite(original: Original, pixels_nhwc_u8: np.ndarray) -> onnx.ModelProto:
    """Rewrite the original so that it can be served.

    The answers are compared on the images, (N, H, W, 3) uint8, at least 8.

    Raises:
        ArtefactError: no rewrite gives the original's answers at every batch size; says what went wrong.
    """
    signature = original.signature
    expected = original.probabilities(pixels_nhwc_u8[: max(CHECKED_BATCHES)])
    conversions = (False,) if MIN_OPSET <= signature.opset <= MAX_OPSET else (True, False)
    # A network with uint8 input may need a cast back to uint8. Prefer none: TensorRT has no uint8 in a graph.
    byte_networks = (False, True) if signature.input_type is np.uint8 else (False,)
    failures: list[tuple[int, str]] = []
    with TemporaryDirectory(prefix="fruitstand-adopt-") as scratch:
        trial = Path(scratch) / "trial.onnx"
        for convert_opset, free_batch, byte_network, with_features in itertools.product(
            conversions, (False, True), byte_networks, (True, False)
        ):
            try:
                model = _rewritten(
                    original,
                    convert_opset=convert_opset,
                    free_batch=free_batch,
                    byte_network=byte_network,
                    with_features=with_features,
                )
                write_model(model, trial)
                onnx.checker.check_model(model, full_check=True)
            except Exception as exc:  # protobuf, the converter and the checker raise many classes
                failures.append((0, f"cannot be rewritten ({_line(exc)})"))
                continue
            batch, reason = _wrong_batch(trial, pixels_nhwc_u8, expected, original.max_abs_diff)
            if batch is None:
                return model
            failures.append((batch, f"its batch cannot be made dynamic: a batch of {batch} {reason}"))
    batch, reason = max(failures, key=lambda failure: failure[0])
    raise ArtefactError(
        f"{signature.path}: {reason}" + ("; export it with a dynamic batch axis" if batch else "")
    )


def _line(exc: Exception) -> str:
    lines = [line for line in str(exc).splitlines() if line.strip()]
    return lines[0].strip()[:200] if lines else type(exc).__name__


def _wrong_batch(
    path: Path, pixels_nhwc_u8: np.ndarray, expected: np.ndarray, max_abs_diff: float
) -> tuple[int | None, str]:
    """The first batch size whose answers fail or differ from those to single images, and how."""
    silent = onnxruntime.RunOptions()
    silent.log_severity_level = 4  # the error message is enough
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
            return size, f"differs from single images by {difference:.2g}, allowed {max_abs_diff:.2g}"
    return None, ""


def _rewritten(
    original: Original, *, convert_opset: bool, free_batch: bool, byte_network: bool, with_features: bool
) -> onnx.ModelProto:
    """Rewrite the graph in one way.

    Args:
        original: the external model.
        convert_opset: convert to `OPSET` first.
        free_batch: replace constant shapes and joined constants of the fixed batch by ones of any batch.
        byte_network: cast back to uint8 after the cast to float.
        with_features: add the last layer's input as a second output.
    """
    signature = original.signature
    model = onnx.ModelProto()
    model.CopyFrom(signature.model)
    if convert_opset:
        model = version_converter.convert_version(model, OPSET)
    graph = model.graph
    # Files of IR version 3 list weights as inputs too.
    weights = {one.name for one in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    del graph.input[:], graph.value_info[:], model.metadata_props[:]
    graph.input.extend(inputs)
    _name_constants(graph)
    for number, node in enumerate(graph.node):
        node.name = f"{number}.{node.name or node.op_type}"  # the quantiser needs unique names
        node.doc_string = ""
    if free_batch:
        _free_reshapes(graph, signature.fixed_batch or 1)
        _free_joins(graph)
    model = onnx.compose.add_prefix(model, PREFIX)
    model.ir_version = IR_VERSION
    _put_in_front(model.graph, original, byte_network)
    _put_behind(model.graph, original)
    if with_features:
        expose_features(model)
    return model


def _name_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initializers, because the quantiser and `expose_features` look there."""
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
    """Let reshapes to a constant batch take any batch: [1, 512] becomes [-1, 512]."""
    constants = {one.name: one for one in graph.initializer}
    for number, node in enumerate(list(graph.node)):
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]]).copy()
        if len(shape) < 2 or shape[0] != fixed_batch:
            continue
        shape[0] = 0 if -1 in shape else -1  # 0 keeps the input's first axis
        name = f"free_shape_{number}"  # a new constant, because another node may read the old one
        graph.initializer.append(numpy_helper.from_array(shape, name))
        node.input[1] = name


def _free_joins(graph: onnx.GraphProto) -> None:
    """Expand a constant of batch 1 that is joined to every image, such as a transformer's class token."""
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


def _put_in_front(graph: onnx.GraphProto, original: Original, byte_network: bool) -> None:
    """Put cast, layout and normalisation in front, in the order of a run's own export."""
    signature = original.signature
    (value,) = graph.input
    steps: list[onnx.NodeProto] = [helper.make_node("Cast", [], [], to=TensorProto.FLOAT)]
    if original.layout == NCHW:
        steps.append(helper.make_node("Transpose", [], [], perm=[0, 3, 1, 2]))
    if signature.input_type is np.uint8:
        steps += [helper.make_node("Cast", [], [], to=TensorProto.UINT8)] if byte_network else []
    else:
        shape = (1, 3, 1, 1) if original.layout == NCHW else (1, 1, 1, 3)
        scale, shift = scale_and_shift(original.preprocessing)
        for operator, name, array in (("Mul", "scale", scale), ("Add", "shift", shift)):
            graph.initializer.append(numpy_helper.from_array(array.numpy().reshape(shape), name))
            steps.append(helper.make_node(operator, ["", name], []))
        if signature.input_type is not np.float32:
            steps.append(helper.make_node("Cast", [], [], to=_FLOATS[signature.input_type]))
    _chain(steps, PIXELS, value.name)
    nodes = [*steps, *graph.node]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    shape = ["batch", *original.preprocessing.input_size, 3]
    graph.input.append(helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, shape))


def _put_behind(graph: onnx.GraphProto, original: Original) -> None:
    """Replace the outputs by one: fp32, a row of probabilities per image."""
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
    _chain(steps, value.name, PROBABILITIES)
    graph.node.extend(steps)
    del graph.output[:]
    num_classes = original.num_classes
    graph.output.append(
        helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["batch", num_classes])
    )


def _chain(nodes: list[onnx.NodeProto], source: str, target: str) -> None:
    """Connect nodes through their first input and their output, from tensor `source` to tensor `target`."""
    for number, node in enumerate(nodes):
        node.name = f"{target}_{number}.{node.op_type}"
        node.input[:] = [source, *node.input[1:]]
        source = target if number == len(nodes) - 1 else node.name
        node.output[:] = [source]
