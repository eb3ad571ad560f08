from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.gates.checks import run_torch
from export.gates.structure import structure_gate
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
        "vit_tiny_patch16_224", num_classes=3, input_size=(32, 32), depth=2, embed_dim=48, num_heads=3
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


def test_only_a_cast_reads_the_pixels_of_a_transformer(files: tuple[Path, Path]) -> None:
    """Its embedding asks for the batch size, which the cast has as well."""
    for file in files:
        gate = structure_gate(file, PREPROCESSING, num_classes=3)
        assert gate.passed, gate


def test_a_transformer_answers_in_fp16_as_in_torch(vit: ServedModel, files: tuple[Path, Path]) -> None:
    """At more than one batch size, for the axis stays symbolic."""
    _check_answers(vit, *files)


@pytest.mark.parametrize(
    ("model_name", "arguments"),
    [
        pytest.param(
            "convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}, id="norm_after_the_pool"
        ),
        pytest.param("mobilenetv3_small_050", {}, id="conv_after_the_pool", marks=pytest.mark.nightly),
        pytest.param("regnety_002", {}, id="pool_in_the_head", marks=pytest.mark.nightly),
        pytest.param("efficientnet_b0", {}, id="squeeze_and_excite", marks=pytest.mark.nightly),
    ],
)
def test_other_families_answer_as_in_torch(model_name: str, arguments: dict, tmp_path: Path) -> None:
    """Their heads pool, normalise and flatten in other orders than a ResNet's."""
    torch.manual_seed(0)
    model = ServedModel(
        create_network(model_name, num_classes=3, input_size=(32, 32), **arguments), PREPROCESSING
    ).eval()
    fp32, fp16 = tmp_path / "fp32.onnx", tmp_path / "fp16.onnx"
    export_onnx(model, PREPROCESSING, fp32, {})
    convert_fp16(fp32, fp16)
    _check_answers(model, fp32, fp16)


def _check_answers(model: ServedModel, fp32: Path, fp16: Path) -> None:
    for batch in (1, 5):
        pixels = np.random.default_rng(batch).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
        expected = run_torch(model, pixels)
        for file, limit in ((fp32, 1e-4), (fp16, 1e-2)):
            assert np.abs(run_batches(open_session(file), pixels) - expected).max() <= limit
