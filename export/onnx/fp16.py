"""Convert a model to fp16 for GPUs, with fp32 where it is necessary."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from export.onnx.metadata import write_model

FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
_WEIGHTED = ("Conv", "Gemm", "MatMul")


def convert_fp16(fp32: Path, fp16: Path) -> None:
    """Write the fp16 version of an fp32 ONNX file with the same inputs and outputs.

    The normalisation before the first weights stays fp32, because a pixel's 256 steps times its scale need
    more than 11 bits. The last softmax stays fp32, because probabilities have to sum to 1; softmaxes in a
    transformer's attention are converted.

    ONNX Runtime's own converter (`onnxruntime.transformers.float16`) puts casts to fp16 and back between two
    neighbours that both stay fp32. This one puts one cast on each side of the network.

    Its nodes are in execution order, as `export_onnx` writes them.
    """
    model = onnx.load(fp32)
    graph = model.graph
    head, body, tail = _parts(graph)
    floats = _float_tensors(model)
    into, out_of = _crossing(head, body) & floats, _crossing(body, tail) & floats
    shared = _convert_weights(graph, body, [*head, *tail])
    for node in body:
        node.input[:] = [f"{name}_fp16" if name in into | shared else name for name in node.input]
        _convert_attributes(node)
    for node in tail:
        node.input[:] = [f"{name}_fp32" if name in out_of else name for name in node.input]
    nodes = [
        *head,
        *(_cast(name, f"{name}_fp16", FLOAT16) for name in sorted(into)),
        *body,
        *(_cast(name, f"{name}_fp32", FLOAT) for name in sorted(out_of)),
        *tail,
    ]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    write_model(model, fp16)


def _parts(graph: onnx.GraphProto) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto], list[onnx.NodeProto]]:
    """Split the nodes: before the first weights, the network, and the last softmax with all output nodes."""
    nodes = list(graph.node)
    maker = {name: index for index, node in enumerate(nodes) for name in node.output}
    first = next(index for index, node in enumerate(nodes) if node.op_type in _WEIGHTED)
    head = _ancestors(nodes, maker, first) - {first}
    answers = {maker[output.name] for output in graph.output}
    softmax = maker[graph.output[0].name]
    while nodes[softmax].op_type != "Softmax":  # walk back from the output, past reshapes
        softmax = maker[nodes[softmax].input[0]]
    tail = answers | {softmax}
    for index, node in enumerate(nodes):
        if any(maker.get(name) in tail for name in node.input):
            tail.add(index)
    return (
        [node for index, node in enumerate(nodes) if index in head],
        [node for index, node in enumerate(nodes) if index not in head | tail],
        [node for index, node in enumerate(nodes) if index in tail],
    )


def _ancestors(nodes: list[onnx.NodeProto], maker: dict[str, int], index: int) -> set[int]:
    """A node and all nodes that it depends on."""
    found, todo = set(), [index]
    while todo:
        one = todo.pop()
        if one not in found:
            found.add(one)
            todo += [maker[name] for name in nodes[one].input if name in maker]
    return found


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Names of the fp32 tensors between nodes; integers such as shapes need no cast."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name
        for value in (*inferred.value_info, *inferred.output)
        if value.type.tensor_type.elem_type == FLOAT
    }


def _convert_weights(
    graph: onnx.GraphProto, body: Iterable[onnx.NodeProto], others: Iterable[onnx.NodeProto]
) -> set[str]:
    """Convert the network's weights; a weight that other nodes read too gets a copy, `<name>_fp16`.

    Returns:
        The names of the copied weights.
    """
    read = {name for node in body for name in node.input}
    read_elsewhere = {name for node in others for name in node.input}
    shared = set()
    for tensor in list(graph.initializer):
        if tensor.name in read and tensor.data_type == FLOAT:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            if tensor.name in read_elsewhere:
                shared.add(tensor.name)
                graph.initializer.append(numpy_helper.from_array(half, f"{tensor.name}_fp16"))
            else:
                tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    return shared


def _convert_attributes(node: onnx.NodeProto) -> None:
    """Convert constants, and casts to fp32, inside the network to fp16."""
    for attribute in node.attribute:
        if attribute.t.data_type == FLOAT:
            half = numpy_helper.to_array(attribute.t).astype(np.float16)
            attribute.t.CopyFrom(numpy_helper.from_array(half, attribute.t.name))
        elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
            attribute.i = FLOAT16


def _crossing(producers: Iterable[onnx.NodeProto], consumers: Iterable[onnx.NodeProto]) -> set[str]:
    """Names of the tensors that one group of nodes produces and the other consumes."""
    return {name for node in producers for name in node.output} & {
        name for node in consumers for name in node.input
    }


def _cast(source: str, target: str, element_type: int) -> onnx.NodeProto:
    return onnx.helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=element_type)
