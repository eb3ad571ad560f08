from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.onnx.graph import IR_VERSION, OPSET
from export.onnx.quantize import Int8Choice, Quantizer
from fruitstand.contract import PIXELS, PROBABILITIES
from fruitstand.model.session import open_session, run_batches


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with a linear layer, a product of two activations, and a classifier, as transformers have."""
    rng = np.random.default_rng(0)
    shapes = {"embed": (3, 64), "classify": (64, 4)}
    weights = [
        numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Cast", [PIXELS], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "tokens"], ["patches"]),
        helper.make_node("MatMul", ["patches", "embed"], ["embedded"], name="linear"),
        helper.make_node("Transpose", ["embedded"], ["keys"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["embedded", "keys"], ["scores"], name="attention"),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "embedded"], ["mixed"], name="mix"),
        helper.make_node("ReduceMean", ["mixed", "axes"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "classify"], ["logits"], name="classifier"),
        helper.make_node("Softmax", ["logits"], [PROBABILITIES], axis=1),
    ]
    constants = {"scale": np.float32(1 / 255), "tokens": np.array([0, 16, 3]), "axes": np.array([1])}
    weights += [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, ["batch", 4, 4, 3])],
        [helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["batch", 4])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    path = tmp_path_factory.mktemp("attention") / "model.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("choice", "quantised"),
    [
        pytest.param(Int8Choice(), {"linear", "classifier"}, id="all"),
        pytest.param(Int8Choice(last_in_fp32=True), {"linear"}, id="last_in_fp32"),
    ],
)
def test_linear_layers_are_quantised_and_products_of_activations_are_not(
    choice: Int8Choice, quantised: set[str], attention: Path, tmp_path: Path
) -> None:
    """A transformer's weights are in MatMul nodes; without them its int8 file would be fp32."""
    pixels = np.random.default_rng(1).integers(0, 256, (32, 4, 4, 3), dtype=np.uint8)
    path = tmp_path / "model.int8.onnx"
    Quantizer(attention, pixels, scratch=tmp_path).write(choice, path)
    graph = onnx.load(path).graph
    maker = {name: node for node in graph.node for name in node.output}
    types = {one.name: one.data_type for one in graph.initializer}
    found = set()
    for node in graph.node:
        weights = maker.get(node.input[1]) if node.op_type == "MatMul" else None
        if weights is not None and types.get(weights.input[0]) == TensorProto.INT8:
            found.add(node.name)
    assert found == quantised
    difference = run_batches(open_session(path), pixels) - run_batches(open_session(attention), pixels)
    assert np.abs(difference).max() < 0.05
