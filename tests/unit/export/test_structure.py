import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from export.gates.structure import structure_findings, structure_gate, structure_problems
from fruitstand.contract import PROBABILITIES, Preprocessing
from fruitstand.repository.version_record import read_record
from fruitstand.repository.versions import MANIFEST_NAME, Version
from fruitstand.runs import Run

FILES = ["model.onnx", "model.int8.onnx", "model.fp16.onnx"]


@pytest.fixture(scope="module")
def version(repository: Path) -> Path:
    """The published version's folder."""
    return repository / "fruit_resnet" / "1"


def _fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


def _softmax(model: onnx.ModelProto) -> onnx.NodeProto:
    (softmax,) = (node for node in model.graph.node if node.op_type == "Softmax")
    return softmax


def _renamed_output(model: onnx.ModelProto) -> None:
    _softmax(model).output[0] = model.graph.output[0].name = "softmax"
    for node in model.graph.node:  # the label sets are computed from it
        node.input[:] = ["softmax" if name == PROBABILITIES else name for name in node.input]


def _third_output(model: onnx.ModelProto) -> None:
    logits = onnx.helper.make_tensor_value_info("LOGITS", onnx.TensorProto.FLOAT, ["batch", 4])
    model.graph.node.add(op_type="Identity", input=[_softmax(model).input[0]], output=["LOGITS"])
    model.graph.output.append(logits)


def _new_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 22


def _new_ir(model: onnx.ModelProto) -> None:
    model.ir_version = 11


def _foreign_operator(model: onnx.ModelProto) -> None:
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    softmax = _softmax(model)
    softmax.op_type, softmax.domain = "Gelu", "com.microsoft"
    del softmax.attribute[:]


def _layout_change_before_the_cast(model: onnx.ModelProto) -> None:
    """The order of nodes that files had before: Transpose on uint8, then Cast."""
    cast, transpose = model.graph.node[:2]
    assert (cast.op_type, transpose.op_type) == ("Cast", "Transpose")
    transpose.input[0], cast.input[0] = cast.input[0], "transposed"
    cast.output[0], transpose.output[0] = transpose.output[0], "transposed"
    del model.graph.value_info[:]
    nodes = [transpose, cast, *model.graph.node[2:]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _outside_weights(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_a_version_has_the_contracts_structure(name: str, version: Path, run: Run) -> None:
    """And other classes or another size are noticed."""
    gate = structure_gate(version / name, run.preprocessing, len(run.labels))
    assert gate.passed, gate
    assert gate.name == f"structure_{name.removesuffix('.onnx')}"
    assert not structure_gate(version / name, run.preprocessing, 5).passed
    assert "PIXELS" in str(structure_gate(version / name, Preprocessing(input_size=(128, 128)), 4))


@pytest.mark.parametrize("name", FILES)
def test_a_cast_takes_the_uint8_input_and_nothing_else_does(name: str, version: Path) -> None:
    """TensorRT takes uint8 into a Cast only, and its profile names the graph's input."""
    graph = onnx.load(version / name).graph
    assert [node.op_type for node in graph.node if "PIXELS" in node.input] == ["Cast"]


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        pytest.param(_fixed_batch, "batch axis is fixed to 4", id="fixed_batch"),
        pytest.param(_renamed_output, "softmax", id="renamed_output"),
        pytest.param(_third_output, "LOGITS", id="third_output"),
        pytest.param(_new_opset, "opset 22", id="new_opset"),
        pytest.param(_new_ir, "IR version 11", id="new_ir"),
        pytest.param(_foreign_operator, "com.microsoft", id="foreign_operator"),
        pytest.param(_layout_change_before_the_cast, "goes into Transpose", id="uint8_into_transpose"),
        pytest.param(_outside_weights, "", id="outside_weights"),
    ],
)
def test_a_broken_structure_is_refused_and_named(
    break_it: Callable[[onnx.ModelProto], None], says: str, version: Path, run: Run, tmp_path: Path
) -> None:
    """Each of them alone fails the gate."""
    model = onnx.load(version / "model.onnx")
    break_it(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    gate = structure_gate(path, run.preprocessing, len(run.labels))
    assert not gate.passed
    assert says in gate.detail


def test_a_version_that_was_published_with_the_old_order_is_found(version: Path, tmp_path: Path) -> None:
    """`models check` looks at the graphs of versions that passed the gates of their day."""
    copy = shutil.copytree(version, tmp_path / "1")
    published = Version(1, copy, read_record(copy / MANIFEST_NAME))
    assert structure_findings([published]) == []
    model = onnx.load(copy / "model.fp16.onnx")
    _layout_change_before_the_cast(model)
    (copy / "model.fp16.onnx").write_bytes(model.SerializeToString())
    (finding,) = structure_findings([published])
    assert finding.startswith("version 1, model.fp16.onnx: input PIXELS is uint8 and goes into Transpose")


@pytest.mark.parametrize("content", [pytest.param(b"", id="empty"), pytest.param(b"PK\x03\x04", id="zip")])
def test_a_file_that_is_no_onnx_is_a_problem_and_no_crash(content: bytes, run: Run, tmp_path: Path) -> None:
    """Empty, truncated or something else."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert structure_problems(path, run.preprocessing, 4)


def test_a_truncated_file_is_a_problem(version: Path, run: Run, tmp_path: Path) -> None:
    """Half of a good file."""
    content = (version / "model.onnx").read_bytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: len(content) // 2])
    assert "not a valid ONNX file" in structure_problems(path, run.preprocessing, 4)[0]
