import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
from onnx import TensorProto

from export.adopt.original import Original, observe, read_signature
from export.adopt.rewrite import rewrite
from export.adopt.sources import as_prepared, imagenet_labels, read_label_list, read_preprocessing
from fruitstand.contract import FEATURES, PIXELS, PROBABILITIES, Preprocessing
from fruitstand.errors import ArtefactError, UsageError
from tests.adoptable import ADOPTABLE, SIZE, bias_of_batch_2, nchw_float_of_batch_1, opset_11
from tests.command import fruitstand

STRANGE = ["a:b,c", ' "quoted" ', "007", "[x]", "naïve 猫 🍏", "'", "x" * 200]


def _pixels(count: int = 10) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def _observed(path: Path, num_classes: int = 4) -> Original:
    return observe(read_signature(path), Preprocessing(input_size=(SIZE, SIZE)), num_classes, _pixels())


def _adopted(path: Path, tmp_path: Path, *arguments: object, num_classes: int = 4):
    """The command's result on a file, with labels that fit."""
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps([f"class {number}" for number in range(num_classes)]))
    repository = tmp_path / "repository"
    out = ("--repository", repository, "--out", tmp_path / "out")
    return fruitstand("adopt", path, "--labels", labels, *out, *arguments)


@pytest.mark.parametrize("num_classes", [2, 1000])
@pytest.mark.parametrize("name", ADOPTABLE)
def test_a_rewritten_file_takes_bytes_of_any_batch_and_answers_as_the_original(
    name: str, num_classes: int, tmp_path: Path
) -> None:
    """The cast comes first, the layout behind it, and every row is a distribution."""
    original = _observed(ADOPTABLE[name](tmp_path / "original.onnx", num_classes), num_classes)
    model = rewrite(original, _pixels())
    (taker,) = (node for node in model.graph.node if PIXELS in node.input)
    assert (taker.op_type, taker.attribute[0].i) == ("Cast", TensorProto.FLOAT)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert session.get_inputs()[0].shape == ["batch", SIZE, SIZE, 3]
    for size in (1, 3, 10):
        answers, features = session.run([PROBABILITIES, FEATURES], {PIXELS: _pixels()[:size]})
        np.testing.assert_allclose(answers, original.probabilities(_pixels()[:size]), atol=1e-4)
        np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-3)
        assert features.shape[0] == size


def test_softmax_is_added_where_the_answers_are_logits_and_nowhere_else(tmp_path: Path) -> None:
    """Told by the answers: the one without softmax calls its output as the other does."""
    softmaxes = {}
    for operator in ("Softmax", "Identity", "LogSoftmax"):
        original = _observed(opset_11(tmp_path / f"{operator}.onnx", last_operator=operator))
        assert original.output_name == "answer"
        nodes = rewrite(original, _pixels()).graph.node
        softmaxes[operator] = sum(node.op_type == "Softmax" for node in nodes)
    assert softmaxes == {"Softmax": 1, "Identity": 1, "LogSoftmax": 1}


def test_names_of_the_contract_inside_the_original_do_no_harm(tmp_path: Path) -> None:
    """A file whose tensors are called PIXELS, PROBABILITIES and FEATURES already."""
    path = opset_11(tmp_path / "original.onnx")
    content = path.read_bytes()
    model = onnx.load_from_string(content)
    names = {"images": PIXELS, "pooled": PROBABILITIES, "positive": FEATURES}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    model.graph.input[0].name = PIXELS
    onnx.save(model, path)
    original = _observed(path)
    session = onnxruntime.InferenceSession(rewrite(original, _pixels()).SerializeToString())
    got = session.run([PROBABILITIES], {PIXELS: _pixels()})[0]
    np.testing.assert_allclose(got, original.probabilities(_pixels()), atol=1e-4)


REFUSED: dict[str, tuple[Callable[..., Path], dict[str, Any], str]] = {
    "two_inputs": (opset_11, {"second_input": True}, r"has 2 inputs, images, scale; expected one"),
    "one_channel": (
        opset_11,
        {"channels": 1},
        r"input images is \['n', 48, 48, 1\], expected \[N, 3, H, W\]",
    ),
    "classes": (opset_11, {"num_classes": 3}, r"answers 3 classes, but there are 4 labels"),
    "no_row_an_image": (
        opset_11,
        {"reshape": (16,), "last_operator": "Identity"},
        r"no output is \[N, classes\] for 4 labels",
    ),
    "fixed_batch": (
        bias_of_batch_2,
        {},
        r"its batch cannot be made dynamic: a batch of \d .*; export it with a dynamic batch axis",
    ),
    "custom_operator": (
        opset_11,
        {"activation": ("com.microsoft", "Gelu")},
        r"uses com\.microsoft\.Gelu, which not every server supports",
    ),
    "quantised_output": (
        opset_11,
        {"output_type": TensorProto.UINT8},
        r"output cast is tensor\(uint8\), expected floating point numbers",
    ),
    "independent_scores": (opset_11, {"last_operator": "Sigmoid"}, r"answers come from a sigmoid and sum"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unsuitable_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    """The line names the file and what is wrong with it; nothing is published."""
    make, arguments, reason = REFUSED[name]
    path = make(tmp_path / "original.onnx", **arguments)
    result = _adopted(path, tmp_path)
    (line,) = result.stderr.strip().splitlines()
    assert result.returncode == 1
    assert re.search(rf"^fruitstand: error: {re.escape(str(path))}: {reason}", line), line
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"\x89PNG\r\n\x1a\n" * 9, "not an ONNX file", id="another_kind_of_file"),
        pytest.param(b"", "not an ONNX file", id="empty"),
        pytest.param(None, "no such file", id="missing"),
    ],
)
def test_what_is_no_onnx_file_is_refused(content: bytes | None, reason: str, tmp_path: Path) -> None:
    """In one line, with the file's name."""
    path = tmp_path / "original.onnx"
    if content is not None:
        path.write_bytes(content)
    result = _adopted(path, tmp_path)
    assert result.returncode == 1
    assert f"{path}: {reason}" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_flags_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """No labels, weights of an ONNX file, another size than the model's, unknown names, too few images."""
    path = nchw_float_of_batch_1(tmp_path / "original.onnx")
    (tmp_path / "preprocessing.json").write_text('{"input_size": [64, 64]}')
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "unknown.json").write_text('{"resize": 3}')
    for arguments, reason in (
        (("--weights", path), "--weights: only for timm:NAME"),
        (
            ("--preprocessing", tmp_path / "preprocessing.json"),
            r"input_size \(64, 64\), the model takes \(48",
        ),
        (("--preprocessing", tmp_path / "unknown.json"), "--preprocessing: .*resize"),
        (
            ("--preprocessing", "timm:resnet19"),
            "timm does not know the model 'resnet19'; similar names: resnet",
        ),
        (("--images", empty), "holds 0 images, at least 32 are needed"),
    ):
        result = _adopted(path, tmp_path, *arguments)
        assert result.returncode == 2
        assert re.search(reason, result.stderr), result.stderr
    assert "--labels: an ONNX file" in fruitstand("adopt", path, "--out", tmp_path / "out").stderr


@pytest.mark.parametrize("kind", ["lines", "windows_lines", "json"])
def test_any_label_text_survives(kind: str, tmp_path: Path) -> None:
    """Quotes, colons, blanks at the ends, leading zeros and other scripts, from lines or JSON."""
    path = tmp_path / "labels"
    end = "\r\n" if kind == "windows_lines" else "\n"
    text = json.dumps(STRANGE) if kind == "json" else "".join(f"{label}{end}" for label in STRANGE)
    path.write_bytes(text.encode())
    assert read_label_list(path) == STRANGE


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("a\nb\na\n", "'a' occurs twice", id="twice"),
        pytest.param("a\n\nb\n", "is empty", id="empty_line"),
        pytest.param('["a", 3]', "expected a list of strings", id="a_number"),
        pytest.param("a\n", "at least two", id="one"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(text: str, reason: str, tmp_path: Path) -> None:
    """With the file's name."""
    path = tmp_path / "labels"
    path.write_text(text)
    with pytest.raises(ArtefactError, match=f"{re.escape(str(path))}: .*{reason}"):
        read_label_list(path)


def test_timm_knows_preprocessing_and_the_names_of_imagenet() -> None:
    """Without a network; a thousand names, and no two alike."""
    values = read_preprocessing("timm:resnet10t")
    assert values["mean"] == (0.485, 0.456, 0.406)
    assert values["input_size"] == (176, 176)
    labels = imagenet_labels(timm.create_model("resnet10t"))
    assert len(set(labels)) == len(labels) == 1000
    with pytest.raises(UsageError, match="no names for 3 classes"):
        imagenet_labels(timm.create_model("resnet10t", num_classes=3))


def test_folders_named_as_labels_tell_the_classes_and_others_do_not(tmp_path: Path) -> None:
    """Then the gates measure accuracy; otherwise a class is what the original answers."""
    paths = [tmp_path / folder / f"{number}.png" for folder in ("a", "b") for number in range(2)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"image")
    answers = np.array([[0.1, 0.9]] * 4)
    told = as_prepared(tmp_path, paths, ["a", "b"], answers)
    assert [row.label for row in told.rows] == ["a", "a", "b", "b"]
    assert [row.split for row in told.rows] == ["val", "train", "val", "train"]
    answered = as_prepared(tmp_path, paths, ["a", "c"], answers)
    assert {row.label for row in answered.rows} == {"c"}
