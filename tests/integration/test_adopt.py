"""A model from elsewhere goes from one command to answers of a real server."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from export.publish.promote import promote
from fruitstand.contract import Preprocessing
from fruitstand.images.reference_decode import decode_reference
from fruitstand.manifest import PreparedData
from fruitstand.repository.versions import read_version, serving_state
from fruitstand.runs import Run
from fruitstand_client import Client
from serving.triton.embedded import EmbeddedServer
from tests.adoptable import ADOPTABLE, SIZE, nchw_float_of_batch_1
from tests.command import fruitstand

LABELS = ["a:b,c", ' "quoted" ', "007", "[x]", "naïve 猫 🍏", "'", "x" * 200]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def _normalised(pixels: np.ndarray) -> np.ndarray:
    return ((pixels / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


ASKED: dict[str, Callable[[onnxruntime.InferenceSession, np.ndarray], np.ndarray]] = {
    "nchw_float_of_batch_1": lambda session, pixels: _softmax(
        session.run(None, {session.get_inputs()[0].name: _normalised(pixels).transpose(2, 0, 1)[None]})[0][0]
    ),
    "nhwc_bytes": lambda session, pixels: session.run(
        None, {session.get_inputs()[0].name: np.stack([pixels, pixels])}
    )[0][0],
    "logits_beside_features": lambda session, pixels: _softmax(
        session.run(None, {session.get_inputs()[0].name: _normalised(pixels).transpose(2, 0, 1)[None]})[1][0]
    ),
    "opset_11": lambda session, pixels: session.run(None, {"images": _normalised(pixels)[None]})[0][0],
}
"""How a user of the original asks it for the probabilities of one (H, W, 3) uint8 image."""


def _served(url: str, images: list[Path], labels: list[str]) -> np.ndarray:
    """(N, C) probabilities, in the order of the labels."""
    with Client(url, batch_size=8) as client:
        answers = client.classify(images, top_k=len(labels))
    by_label = [{rank.label: rank.probability for rank in one.top_k} for one in answers]
    return np.array([[answer[label] for label in labels] for answer in by_label])


@pytest.mark.parametrize(
    "name",
    [
        "nchw_float_of_batch_1",
        *(pytest.param(name, marks=pytest.mark.nightly) for name in ASKED if name != "nchw_float_of_batch_1"),
    ],
)
def test_an_adopted_file_is_served_and_answers_as_the_original_does(
    name: str, prepared: PreparedData, test_images: list[Path], tmp_path: Path
) -> None:
    """One command makes a repository whose server batches and says what ONNX Runtime says of the file."""
    path = ADOPTABLE[name](tmp_path / "original.onnx", len(LABELS))
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    (tmp_path / "preprocessing.json").write_text(json.dumps({"mean": MEAN, "std": STD}))
    repository = tmp_path / "model_repository"
    arguments = ["--labels", tmp_path / "labels.json", "--preprocessing", tmp_path / "preprocessing.json"]
    arguments += ["--repository", repository, "--out", tmp_path / "out", "--json"]
    result = fruitstand("adopt", path, *arguments)
    assert result.returncode == 0, result.stderr
    gates = {gate["name"] for gate in json.loads(result.stdout)["gates"]}
    assert {"structure_model", "original_vs_model_batch_64", "decode_mean_abs_diff_of_255"} < gates
    source = read_version(repository, 1).manifest["source_run"]
    assert source["adopted"]["from"] == "original.onnx"
    assert source["reference"] == "original"

    images = test_images[:16]
    preprocessing = Preprocessing(input_size=(SIZE, SIZE))
    pixels = [decode_reference(image.read_bytes(), preprocessing) for image in images]
    session = onnxruntime.InferenceSession(path)
    expected = np.stack([ASKED[name](session, one) for one in pixels])
    with EmbeddedServer(repository, log_path=tmp_path / "triton.log") as server:
        served = _served(server.url, images, LABELS)
    # The served decode may differ by 1 of 255; these untrained networks tell images apart by little.
    spread = np.ptp(expected, axis=0).max()
    assert spread > 1e-3, "the images get different answers"
    assert np.abs(served - expected).max() < spread / 5


@pytest.mark.nightly
def test_a_trained_model_is_adopted_with_all_variants_and_promoted_live(
    run: Run, prepared: PreparedData, test_images: list[Path], tmp_path: Path
) -> None:
    """A timm model with a file of weights, judged on labelled images; the second time as version 2."""
    (tmp_path / "labels.txt").write_text("".join(f"{label}\n" for label in run.labels))
    (tmp_path / "preprocessing.json").write_text(json.dumps(run.preprocessing.to_dict()))
    common = ["--labels", tmp_path / "labels.txt", "--preprocessing", tmp_path / "preprocessing.json"]
    common += ["--images", prepared.directory / "images", "--repository", tmp_path / "model_repository"]
    common += ["--max-slowdown", 100, "--json"]
    repository = tmp_path / "model_repository"
    for number in (1, 2):
        result = fruitstand(
            "adopt", f"timm:{run.model_name}", "--weights", run.weights, *common, "--out", tmp_path / "out"
        )
        assert result.returncode == 0, result.stderr
        made = json.loads(result.stdout)
        assert made["version"] == number
    assert {"model.int8.onnx", "model.fp16.onnx"} <= set(read_version(repository, 2).manifest["files"])
    assert made["reports"]["int8"]["top1_fp32"] > 0.9
    with EmbeddedServer(repository, log_path=tmp_path / "triton.log") as server:
        promote(repository, 2, url=server.url)
        served = _served(server.url, test_images[:8], run.labels)
        np.testing.assert_allclose(served.sum(axis=1), 1, atol=1e-3)
    state = serving_state(repository)
    assert state is not None
    assert (state.version, state.previous) == (2, 1)


def test_another_models_classes_do_not_enter_a_repository(two_versions: Path, tmp_path: Path) -> None:
    """Before anything is computed, in one line."""
    path = nchw_float_of_batch_1(tmp_path / "original.onnx")
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\n")
    arguments = ["--labels", tmp_path / "labels.txt", "--out", tmp_path / "out"]
    result = fruitstand("adopt", path, *arguments, "--repository", two_versions)
    assert result.returncode == 1
    assert "serves other classes" in result.stderr


def test_without_a_network_pretrained_weights_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's client is told to stay offline, with an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    result = fruitstand("adopt", "timm:resnet10t", "--out", tmp_path / "out")
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert "timm:resnet10t: its pretrained weights cannot be fetched" in line
    assert "--weights" in line
