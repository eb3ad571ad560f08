"""The ONNX graph: raw pixels in, probabilities out and the features they come from, any batch size."""

import copy
import logging
import warnings
from pathlib import Path

import onnx
import torch
from timm.layers import SelectAdaptivePool2d
from timm.utils.model import reparameterize_model

from export.onnx.metadata import set_metadata, write_model
from fruitstand.contract import FEATURES, PIXELS, PROBABILITIES, Preprocessing
from fruitstand.model.network import load_network, scale_and_shift
from fruitstand.runs import Run

OPSET = 18
"""Read by every ONNX Runtime since 1.15; 24.10's native backend carries 1.19.2."""
IR_VERSION = 10
"""Of the file format; the newest that ONNX Runtime 1.19.2 reads."""
EXAMPLE_BATCH = 4
"""At least 2, or the exporter takes the batch for a constant."""


class ServedModel(torch.nn.Module):
    """Normalisation, network and softmax as one module: what the server runs."""

    def __init__(self, model: torch.nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.temperature = 1.0
        """What the logits are divided by; export calibrates it."""
        for name, values in zip(("scale", "shift"), scale_and_shift(preprocessing), strict=True):
            self.register_buffer(name, values)

    def forward(self, pixels_nhwc_u8: torch.Tensor) -> torch.Tensor:
        """(N, H, W, 3) uint8 RGB to (N, num_classes) float32 probabilities."""
        # Cast first: TensorRT takes a uint8 input into a Cast and into nothing else.
        batch = pixels_nhwc_u8.float().permute(0, 3, 1, 2) * self.scale + self.shift
        logits = self.model(batch)
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return logits.softmax(dim=1)


class _MeanPool(torch.nn.Module):
    """Mean over height and width."""

    def __init__(self, *, keepdim: bool) -> None:
        super().__init__()
        self._keepdim = keepdim

    def forward(self, features_nchw: torch.Tensor) -> torch.Tensor:
        return features_nchw.mean(dim=(2, 3), keepdim=self._keepdim)


def load_served_model(run: Run) -> ServedModel:
    """The run's network as it will be served, in evaluation mode."""
    return ServedModel(load_network(run), run.preprocessing).eval()


def export_onnx(
    model: ServedModel, preprocessing: Preprocessing, path: Path, metadata: dict[str, str]
) -> None:
    """Write `model` as one ONNX file with a symbolic batch axis.

    The model is in evaluation mode; its weights are inside the file.
    """
    model = copy.deepcopy(model)
    # RepVGG, MobileOne and LeViT train with branches and norms that fold into one layer.
    model.model = reparameterize_model(model.model, inplace=True)
    for name, pool in list(model.model.named_modules()):
        if isinstance(pool, SelectAdaptivePool2d) and pool.pool_type == "avg":
            # AdaptiveAvgPool2d, which timm uses, becomes eleven nodes that gather by computed indices.
            keepdim = isinstance(pool.flatten, torch.nn.Identity)
            model.model.set_submodule(name, _MeanPool(keepdim=keepdim))
    height, width = preprocessing.input_size
    example = torch.randint(0, 256, (EXAMPLE_BATCH, height, width, 3), dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # The exporter warns of its own internals on every run; what it produces is checked afterwards.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[PIXELS],
            output_names=[PROBABILITIES],
            opset_version=OPSET,
            verbose=False,
        )
    proto = program.model_proto
    proto.ir_version = IR_VERSION
    graph = proto.graph
    # Stack traces and module paths of the exporting machine.
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    _read_pixels_once(graph)
    expose_features(proto)
    set_metadata(proto, metadata)
    write_model(proto, path)


def _read_pixels_once(graph: onnx.GraphProto) -> None:
    """Let all readers of the input read its cast, a ViT's Shape too. TensorRT takes uint8 only in a Cast."""
    position, cast = next(
        (position, node)
        for position, node in enumerate(graph.node)
        if node.op_type == "Cast" and PIXELS in node.input
    )
    if sum(PIXELS in node.input for node in graph.node) == 1:
        return
    first = onnx.NodeProto()
    first.CopyFrom(cast)
    del graph.node[position]
    graph.node.insert(0, first)
    for node in graph.node:
        if node.op_type != "Cast" and PIXELS in node.input:
            names = [first.output[0] if name == PIXELS else name for name in node.input]
            del node.input[:]
            node.input.extend(names)


def expose_features(proto: onnx.ModelProto) -> None:
    """Add what the last layer reads as a second output; what is not asked for is not copied.

    The copy stands at the end, so that what converts the network leaves it alone. Without a layer that
    multiplies by constant weights, as where a network from elsewhere ends in a convolution, nothing is added.
    """
    graph = proto.graph
    (batch, _) = graph.output[0].type.tensor_type.shape.dim
    constants = {one.name: one for one in graph.initializer}
    layers = (node for node in reversed(graph.node) if node.op_type in ("Gemm", "MatMul"))
    last = next((node for node in layers if node.input[1] in constants), None)
    if last is None:
        return
    transposed = any(one.name == "transB" and one.i for one in last.attribute)
    width = constants[last.input[1]].dims[1 if transposed else 0]
    graph.node.append(onnx.helper.make_node("Identity", [last.input[0]], [FEATURES], name="features"))
    graph.output.append(
        onnx.helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, [batch.dim_param, width])
    )
