"""Check a file's inputs and outputs against the contract, and its versions against the oldest server."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import Message

from export.gates.gate import Gate, at_most
from fruitstand.contract import FEATURE_MAP, FEATURES, KNOWN, PIXELS, PROBABILITIES, SET_SIZE, Preprocessing
from fruitstand.repository.versions import Version

_EXTERNAL = onnx.TensorProto.EXTERNAL

MAX_OPSET = 21
MAX_IR_VERSION = 10
"""The newest versions that ONNX Runtime 1.19.2 reads, the one in Triton 24.10."""


def structure_gate(path: Path, preprocessing: Preprocessing, num_classes: int) -> Gate:
    """The number of deviations from the contract; the limit is 0."""
    problems = structure_problems(path, preprocessing, num_classes)
    return at_most(f"structure_{path.stem}", len(problems), 0, detail="; ".join(problems))


def structure_findings(versions: Iterable[Version]) -> list[str]:
    """Apply today's rules to published versions; returns one line per problem."""
    findings = []
    for version in versions:
        for name in version.record.networks:
            path = version.directory / name
            problems = structure_problems(path, version.preprocessing, len(version.labels))
            findings += [f"version {version.number}, {name}: {problem}" for problem in problems]
    return findings


def structure_problems(path: Path, preprocessing: Preprocessing, num_classes: int) -> list[str]:
    """Problems of an ONNX file: names, types, shapes, a fixed batch axis, versions, non-standard parts.

    Returns:
        One line each; empty when the file may be served.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        outside = next((one for one in _tensors(model) if one.data_location == _EXTERNAL), None)
        if outside is not None:  # loading would read a file that is not in the manifest
            return [
                f"tensor {outside.name!r} is outside the file; a served model must contain all its weights"
            ]
        onnx.checker.check_model(model, full_check=True)
    except Exception as exc:  # protobuf, checker and shape inference raise many classes
        return [
            f"not a valid ONNX file: {str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc)}"
        ]
    height, width = preprocessing.input_size
    graph, element = model.graph, onnx.TensorProto
    problems = _version_problems(model)
    problems += _value_problems("input", graph.input, PIXELS, element.UINT8, [height, width, 3])
    problems += _byte_input_problems(graph)
    problems += _output_problems(graph, num_classes)
    return problems


def _output_problems(graph: onnx.GraphProto, num_classes: int) -> list[str]:
    """Probabilities come first; FEATURES (drift), FEATURE_MAP (explainer), KNOWN and SET_SIZE may follow."""
    optional = (KNOWN, SET_SIZE)
    answers = [value for value in graph.output if value.name not in (FEATURES, FEATURE_MAP, *optional)]
    problems = _value_problems("output", answers, PROBABILITIES, onnx.TensorProto.FLOAT, [num_classes])
    for value in graph.output:
        if value.name in optional:
            problems += _value_problems("output", [value], value.name, onnx.TensorProto.FLOAT, [1])
    return problems


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """All tensors of a model: initializers, attributes, subgraphs, functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for child in value if descriptor.is_repeated else [value]:
                yield from _tensors(child)


def _version_problems(model: onnx.ModelProto) -> list[str]:
    problems = []
    if model.ir_version > MAX_IR_VERSION:
        problems.append(f"IR version {model.ir_version}, at most {MAX_IR_VERSION} is supported")
    opset = max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0)
    if not 1 <= opset <= MAX_OPSET:
        problems.append(f"opset {opset}, 1 to {MAX_OPSET} are supported")
    foreign = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if foreign:
        problems.append(f"operators of {min(foreign)!r}, which not every engine supports")
    return problems


def _byte_input_problems(graph: onnx.GraphProto) -> list[str]:
    """Find operators other than Cast that take a uint8 input.

    ONNX Runtime leaves such an operator to CUDA. TensorRT's part of the graph then begins at a tensor that
    its optimization profile does not name, and the model does not load.

    Source:
        NVIDIA/TensorRT issue 3985; onnx-tensorrt `docs/operators.md`, UINT8 under Cast.
    """
    problems = []
    for value in graph.input:
        if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8:
            takers = {node.op_type for node in graph.node if value.name in node.input} - {"Cast"}
            if takers:
                problems.append(
                    f"input {value.name} is uint8 and goes into {', '.join(sorted(takers))}; TensorRT takes"
                    " uint8 only into a Cast: cast first, export again"
                )
    return problems


def _value_problems(kind: str, values, name: str, element_type: int, dims: list[int]) -> list[str]:
    if [value.name for value in values] != [name]:
        return [f"{kind}s are {[value.name for value in values]}, expected [{name!r}]"]
    tensor = values[0].type.tensor_type
    if not tensor.shape.dim:
        return [f"{kind} {name} has no shape"]
    batch, *rest = tensor.shape.dim
    problems = []
    if not batch.dim_param:
        problems.append(f"the {kind}'s batch axis is fixed to {batch.dim_value}, not symbolic")
    if tensor.elem_type != element_type or [dim.dim_value for dim in rest] != dims:
        problems.append(f"{kind} {name} is not {dims} of the contract's type")
    return problems
