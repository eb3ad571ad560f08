"""The explainer's file, on networks small enough to be written by hand."""

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from export.onnx.explainer import (
    MAX_BYTES,
    LinearHead,
    TrainingSample,
    find_linear_head,
    max_sample,
    write_explainer,
)
from fruitstand.contract import (
    ACTIVATION,
    CROP,
    FEATURE_MAP,
    NEIGHBOURS,
    PIXELS,
    PROBABILITIES,
    THUMBNAILS,
    Preprocessing,
)
from fruitstand.images.synthetic import photographs
from fruitstand.model.session import open_session

WEIGHTS = np.arange(12, dtype=np.float32).reshape(3, 4)
BIAS = np.array([1, 2, 3], np.float32)
GEMM = "logits = Gemm <transB = 1> (pooled, w, b)"
MEAN = "pooled = ReduceMean <keepdims = 0> (map, axes)"


def _graph(*lines: str) -> onnx.GraphProto:
    graph = onnx.parser.parse_graph(
        f"network (float[n, 4, 2, 2] x) => (float[n, 3] {PROBABILITIES})"
        f" {{ map = Relu (x) {' '.join(lines)} {PROBABILITIES} = Softmax <axis = 1> (logits) }}"
    )
    constants = {
        "w": WEIGHTS,
        "wt": WEIGHTS.T,
        "b": BIAS,
        "w2": 2 * WEIGHTS,
        "b2": 2 * BIAS,
        "two": np.array(2, np.float32),
        "axes": np.array([2, 3]),
        "four": np.ones(4, np.float32),
    }
    graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in constants.items()
    )
    return graph


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param((MEAN, GEMM), id="mean_and_gemm"),
        pytest.param(
            ("mean = GlobalAveragePool (map)", "pooled = Flatten (mean)", GEMM), id="global_average_pool"
        ),
        pytest.param(
            (MEAN, "products = MatMul (pooled, wt)", "logits = Add (products, b)"), id="matmul_and_add"
        ),
        pytest.param(
            (MEAN, "twice = Gemm <transB = 1> (pooled, w2, b2)", "logits = Div (twice, two)"),
            id="temperature",
        ),
    ],
)
def test_a_mean_and_one_linear_layer_are_found(lines: tuple[str, ...]) -> None:
    """In the forms in which exporters write them."""
    head = find_linear_head(_graph(*lines))
    assert head is not None
    assert head.feature_map == "map"
    np.testing.assert_array_equal(head.weights, WEIGHTS)
    np.testing.assert_array_equal(head.bias, BIAS)


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(
            (
                "mean = ReduceMean <keepdims = 0> (map, axes)",
                "pooled = LayerNormalization (mean, four)",
                GEMM,
            ),
            id="norm_between",
        ),
        pytest.param(
            ("strongest = GlobalMaxPool (map)", "pooled = Flatten (strongest)", GEMM), id="max_pool"
        ),
        pytest.param(("pooled = Flatten (map)", "logits = Identity (pooled)"), id="no_linear_layer"),
    ],
)
def test_any_other_end_of_a_network_is_not_explained(lines: tuple[str, ...]) -> None:
    """A map of it would not add up to its answer."""
    assert find_linear_head(_graph(*lines)) is None


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """(6, 48, 48, 3) uint8 photographs that differ."""
    rng = np.random.default_rng(0)
    opened = [Image.open(io.BytesIO(one)).convert("RGB") for one in photographs().values()]
    side = 400
    places = [(opened[at % len(opened)], rng.integers(0, 200, 2)) for at in range(6)]
    cut = [image.crop((x, y, x + side, y + side)).resize((48, 48)) for image, (x, y) in places]
    return np.stack([np.asarray(one) for one in cut])


def test_maps_and_neighbours_are_those_of_numpy(pictures: np.ndarray, tmp_path: Path) -> None:
    """Probabilities, the maps of the ranked classes, and of each training image first of all itself."""
    rng = np.random.default_rng(1)
    head = LinearHead(
        feature_map="map",
        weights=rng.normal(size=(7, 16)).astype(np.float32),
        bias=rng.normal(size=7).astype(np.float32),
    )
    maps = rng.random((6, 16, 3, 3), np.float32) ** 3
    sample = TrainingSample(
        classes=np.array([3, 1, 4, 1, 5, 2]), features=maps.mean(axis=(2, 3)), pixels=pictures
    )
    path = tmp_path / "explainer.onnx"
    write_explainer(path, head, sample, Preprocessing(input_size=(48, 48), crop_pct=0.875))
    onnx.checker.check_model(str(path), full_check=True)
    session = open_session(path)
    names = [one.name for one in session.get_outputs()]
    found = dict(zip(names, session.run(names, {FEATURE_MAP: maps, PIXELS: pictures}), strict=True))

    logits = sample.features @ head.weights.T + head.bias
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found[PROBABILITIES], expected, atol=1e-6)
    contrasts = head.weights - head.weights.mean(axis=0)
    for one, probabilities, feature_map in zip(found[ACTIVATION], expected, maps, strict=True):
        ranked = np.argsort(-probabilities)[:5]
        scores = np.maximum(np.tensordot(contrasts[ranked], feature_map, 1), 0)
        excess = np.maximum(scores - scores.mean(axis=(1, 2), keepdims=True), 0)
        np.testing.assert_allclose(one, excess / excess.max(axis=(1, 2), keepdims=True), atol=1e-5)
    nearest = found[NEIGHBOURS][:, 0]
    np.testing.assert_array_equal(nearest[:, 0], sample.classes)
    np.testing.assert_allclose(nearest[:, 1], 1, atol=0.01)
    np.testing.assert_array_equal(nearest[:, 2], 0)
    assert (found[NEIGHBOURS][:, 1:, 2] > 0).all()
    np.testing.assert_allclose(found[CROP], [[1, 0.875, 0]] * 6)
    shown = Image.open(io.BytesIO(found[THUMBNAILS][2, 0].tobytes())).convert("RGB")
    assert np.abs(np.asarray(shown).astype(int) - pictures[2]).mean() < 20


@pytest.mark.parametrize("depth", [512, 2048])
def test_as_many_training_images_are_kept_as_the_limit_allows(
    depth: int, pictures: np.ndarray, tmp_path: Path
) -> None:
    """Of the widths that ResNets have."""
    count = max_sample(depth)
    head = LinearHead(
        feature_map="map", weights=np.zeros((10, depth), np.float32), bias=np.zeros(10, np.float32)
    )
    few = TrainingSample(classes=np.arange(6), features=np.ones((6, depth), np.float32), pixels=pictures)
    write_explainer(tmp_path / "few.onnx", head, few, Preprocessing(input_size=(48, 48)))
    size_bytes = (tmp_path / "few.onnx").stat().st_size
    an_image = (depth + 432 + 1024 + 8) * (count - 6)
    assert 0.98 * MAX_BYTES < size_bytes - head.weights.nbytes + an_image <= MAX_BYTES
