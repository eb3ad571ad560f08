"""ONNX classifiers as other people's tools write them, made by code."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

SIZE = 48
"""Height and width in pixels."""


class _Small(torch.nn.Module):
    """A small network with seeded weights: two convolutions, pooling, one layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        torch.manual_seed(num_classes)
        self.stem = torch.nn.Conv2d(3, 32, 3, stride=2)
        self.conv = torch.nn.Conv2d(32, 32, 3, stride=2)
        self.head = torch.nn.Linear(32, num_classes)
        with torch.no_grad():  # answers that differ clearly from image to image
            self.head.weight *= 20

    def features(self, batch: torch.Tensor) -> torch.Tensor:
        return self.conv(self.stem(batch).relu()).relu().mean(dim=(2, 3))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(batch))


class _Bytes(torch.nn.Module):
    """Takes uint8 NHWC, turns the layout first and casts then, and answers probabilities."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network = _Small(num_classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        batch = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        return self.network(batch).softmax(dim=1)


class _TwoOutputs(_Small):
    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.features(batch)
        return features, self.head(features)


class _ClassToken(_Small):
    """Joins a constant of batch 1 to the features, as an exported vision transformer does."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.token = torch.nn.Parameter(torch.rand(1, 32))
        self.head = torch.nn.Linear(64, num_classes)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.token, self.features(batch)], dim=1))


class _BiasOfBatch2(_Small):
    """Adds another constant to each of its two images."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.bias = torch.nn.Parameter(torch.rand(2, num_classes))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return super().forward(batch) + self.bias


def _export(model: torch.nn.Module, example: torch.Tensor, path: Path, *, dynamic: bool) -> Path:
    dims = ({0: torch.export.Dim("n")},) if dynamic else None
    torch.onnx.export(
        model.eval(), (example,), path, dynamo=True, dynamic_shapes=dims, external_data=False, verbose=False
    )
    return path


def nchw_float_of_batch_1(path: Path, num_classes: int = 4) -> Path:
    """What a plain `torch.onnx.export` writes: fp32 NCHW, a fixed batch of 1, logits."""
    return _export(_Small(num_classes), torch.rand(1, 3, SIZE, SIZE), path, dynamic=False)


def class_token_of_batch_1(path: Path, num_classes: int = 4) -> Path:
    """The same with a constant of batch 1 that is joined to the features."""
    return _export(_ClassToken(num_classes), torch.rand(1, 3, SIZE, SIZE), path, dynamic=False)


def bias_of_batch_2(path: Path, num_classes: int = 4) -> Path:
    """fp32 NCHW with a constant inside for each image of a batch of 2: no other batch can be served."""
    return _export(_BiasOfBatch2(num_classes), torch.rand(2, 3, SIZE, SIZE), path, dynamic=False)


def nhwc_bytes(path: Path, num_classes: int = 4) -> Path:
    """uint8 NHWC, a fixed batch of 2, normalisation and softmax inside."""
    example = torch.zeros(2, SIZE, SIZE, 3, dtype=torch.uint8)
    return _export(_Bytes(num_classes), example, path, dynamic=False)


def logits_beside_features(path: Path, num_classes: int = 4) -> Path:
    """fp32 NCHW of any batch, two outputs, the logits second."""
    return _export(_TwoOutputs(num_classes), torch.rand(4, 3, SIZE, SIZE), path, dynamic=True)


def opset_11(
    path: Path,
    num_classes: int = 4,
    *,
    reshape: tuple[int, ...] = (1, 16),
    activation: tuple[str, str] = ("", "Relu"),
    last_operator: str = "Softmax",
    output_type: int = TensorProto.FLOAT,
    channels: int = 3,
    second_input: bool = False,
) -> Path:
    """fp32 NHWC, opset 11, IR version 3 (weights are inputs too), a reshape to a batch of 1, softmax inside.

    Args:
        path: to write.
        num_classes: of the answer.
        reshape: the constant shape in front of the last layer.
        activation: domain and operator.
        last_operator: what turns scores into answers.
        output_type: an ONNX element type, which the answers are cast to.
        channels: of the images.
        second_input: have one more input than the images.
    """
    generator = np.random.default_rng(num_classes)
    weights = {
        "kernel": generator.normal(0, 0.3, (16, channels, 5, 5)).astype(np.float32),
        "rows": np.array(reshape, np.int64),
        "last": generator.normal(0, 0.5, (16, num_classes)).astype(np.float32),
        "bias": generator.normal(0, 0.1, num_classes).astype(np.float32),
    }
    nodes = [
        helper.make_node("Transpose", ["images"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "kernel"], ["convolved"], strides=[3, 3]),
        helper.make_node(activation[1], ["convolved"], ["positive"], domain=activation[0]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Reshape", ["pooled", "rows"], ["flat"]),
        helper.make_node("MatMul", ["flat", "last"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["scores"]),
        helper.make_node(last_operator, ["scores"], ["answer"]),
    ]  # fmt: skip
    if output_type != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", ["answer"], ["cast"], to=output_type))
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", SIZE, SIZE, channels])]
    if second_input:
        inputs.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1]))
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    inputs += [helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in tensors]
    output = helper.make_tensor_value_info(nodes[-1].output[0], output_type, None)
    graph = helper.make_graph(nodes, "classifier", inputs, [output], tensors)
    opsets = [helper.make_opsetid("", 11), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=3), path)
    return path


ADOPTABLE: dict[str, Callable[..., Path]] = {
    "nchw_float_of_batch_1": nchw_float_of_batch_1,
    "class_token_of_batch_1": class_token_of_batch_1,
    "nhwc_bytes": nhwc_bytes,
    "logits_beside_features": logits_beside_features,
    "opset_11": opset_11,
}
