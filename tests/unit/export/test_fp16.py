from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.gates.checks import run_torch
from export.onnx.fp16 import FLOAT, FLOAT16, convert_fp16
from export.onnx.graph import ServedModel, export_onnx
from fruitstand.contract import PROBABILITIES, Preprocessing
from fruitstand.model.network import create_network
from fruitstand.model.session import open_session, run_batches

PREPROCESSING = Preprocessing(input_size=(32, 32))


@pytest.fixture(scope="module")
def vit() -> ServedModel:
    """A vision transformer with two attentions, on images of four patches."""
    torch.manual_seed(0)
    network = create_network(
        "vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2, embed_dim=48, num_heads=3
    )
    return ServedModel(network, PREPROCESSING).eval()


@pytest.fixture(scope="module")
def files(vit: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Its fp32 and its fp16 file."""
    fp32, fp16 = (tmp_path_factory.mktemp("vit") / name for name in ("fp32.onnx", "fp16.onnx"))
    export_onnx(vit, PREPROCESSING, fp32, {})
    convert_fp16(fp32, fp16)
    return fp32, fp16


def test_a_transformer_keeps_only_its_last_softmax_in_fp32(files: tuple[Path, Path]) -> None:
    """The attentions' softmaxes come before it and compute in fp16, as the network between them."""
    model = onnx.shape_inference.infer_shapes(onnx.load(files[1]), strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    values = (*model.graph.value_info, *model.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    softmaxes = {
        node.output[0]: types[node.output[0]] for node in model.graph.node if node.op_type == "Softmax"
    }
    assert softmaxes.pop(PROBABILITIES) == FLOAT
    assert list(softmaxes.values()) == [FLOAT16, FLOAT16]
    weights = [tensor.data_type for tensor in model.graph.initializer if np.prod(tensor.dims) > 100]
    assert set(weights) == {FLOAT16}


def test_a_transformer_answers_in_fp16_as_in_torch(vit: ServedModel, files: tuple[Path, Path]) -> None:
    """At more than one batch size, for the axis stays symbolic."""
    for batch in (1, 5):
        pixels = np.random.default_rng(batch).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
        expected = run_torch(vit, pixels)
        for file, limit in zip(files, (1e-4, 1e-2), strict=True):
            assert np.abs(run_batches(open_session(file), pixels) - expected).max() <= limit
