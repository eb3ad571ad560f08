"""fp16 for GPUs: half the bytes, twice the rate, and fp32 where it has to stay."""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from export.onnx.metadata import write_model

FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def convert_fp16(fp32: Path, fp16: Path) -> None:
    """Write the fp16 version of an fp32 ONNX file; inputs and outputs stay what they are.

    The normalisation in front of the first convolution stays fp32, for a pixel's 256 steps times its scale
    need more than 11 bits, and so does the softmax, whose sum has to be 1.

    ONNX Runtime's own converter (`onnxruntime.transformers.float16`) puts a cast to fp16 and back between
    two neighbours that both stay fp32; so the network is converted here: everything between the first
    convolution and the softmax, with one cast on each side.

    Args:
        fp32: the file that `export_onnx` wrote; its nodes stand in the order in which they run.
        fp16: the file to write.
    """
    model = onnx.load(fp32)
    graph = model.graph
    first = next(i for i, node in enumerate(graph.node) if node.op_type == "Conv")
    last = next(i for i, node in enumerate(graph.node) if node.op_type == "Softmax")
    head, body, tail = graph.node[:first], graph.node[first:last], graph.node[last:]
    into, out_of = _crossing(head, body), _crossing(body, tail)
    weights = {name for node in body for name in node.input}
    for tensor in graph.initializer:
        if tensor.name in weights and tensor.data_type == FLOAT:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for node in body:
        node.input[:] = [f"{name}_fp16" if name in into else name for name in node.input]
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


def _crossing(producers, consumers) -> set[str]:
    """Names of the tensors that go from one group of nodes to the other."""
    return {name for node in producers for name in node.output} & {
        name for node in consumers for name in node.input
    }


def _cast(source: str, target: str, element_type: int) -> onnx.NodeProto:
    return onnx.helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=element_type)
