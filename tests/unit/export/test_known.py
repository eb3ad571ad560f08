from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.onnx.known import add_known, calibrate, fit_features, fit_temperature, temper
from export.publish.abstention import auroc, set_scores
from fruitstand.contract import FEATURES, KNOWN, KNOWN_LIMIT, PIXELS, PROBABILITIES, SET_SIZE
from fruitstand.model.session import installed_engines, open_session

WIDTH, NUM_CLASSES = 16, 4


def clusters(per_class: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features around one direction for each class, and the classes."""
    draw = np.random.default_rng(seed)
    targets = np.repeat(np.arange(NUM_CLASSES), per_class)
    features = 3 * np.eye(NUM_CLASSES, WIDTH)[targets] + draw.normal(0, 0.2, (len(targets), WIDTH))
    return features.astype(np.float32), targets


def answers(targets: np.ndarray, *, seed: int) -> np.ndarray:
    """Probabilities whose share of right answers is what they say: a class is drawn from each row."""
    draw = np.random.default_rng(seed)
    rows = draw.dirichlet([0.5] * NUM_CLASSES, len(targets))
    drawn = (rows.cumsum(axis=1) > draw.random((len(targets), 1))).argmax(axis=1)
    shifted = np.empty_like(rows)
    for column in range(NUM_CLASSES):  # the drawn class becomes the target
        shifted[np.arange(len(rows)), (column + targets - drawn) % NUM_CLASSES] = rows[:, column]
    return shifted.astype(np.float32)


def plain_file(path: Path) -> Path:
    """A file whose features are its input, and whose probabilities are the softmax of the first of them."""
    batch = "batch"
    nodes = [
        helper.make_node("Identity", [PIXELS], [FEATURES]),
        helper.make_node("Slice", [PIXELS, "start", "end", "axis"], ["logits"]),
        helper.make_node("Softmax", ["logits"], [PROBABILITIES], axis=1),
    ]
    constants = [
        helper.make_tensor(name, TensorProto.INT64, [1], [value])
        for name, value in (("start", 0), ("end", NUM_CLASSES), ("axis", 1))
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "plain",
        [value(PIXELS, TensorProto.FLOAT, [batch, WIDTH])],
        [
            value(PROBABILITIES, TensorProto.FLOAT, [batch, NUM_CLASSES]),
            value(FEATURES, TensorProto.FLOAT, [batch, WIDTH]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("engine", installed_engines())
def test_the_graph_computes_known_and_set_size_as_numpy_does(engine: str, tmp_path: Path) -> None:
    """On images of the classes, far ones and zeros; at batch sizes 1 and many."""
    path = plain_file(tmp_path / "model.onnx")
    features, targets = clusters(40, seed=0)
    model = fit_features(features, targets, max_components=6)
    held_back, classes = clusters(20, seed=1)
    probabilities = temper(np.exp(held_back[:, :NUM_CLASSES]), 1.0)
    thresholds = calibrate(model.distances(held_back), probabilities, classes)
    add_known(path, model, thresholds)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    far = np.random.default_rng(2).normal(0, 3, (8, WIDTH)).astype(np.float32)
    inputs = np.concatenate([held_back, far, np.zeros((1, WIDTH), np.float32)])
    session = open_session(path, engine)
    for batch in (inputs, inputs[:1]):
        known, sizes, answered = session.run([KNOWN, SET_SIZE, PROBABILITIES], {PIXELS: batch})
        assert known.shape == sizes.shape == (len(batch), 1)
        assert known[:, 0] == pytest.approx(thresholds.known(model.distances(batch)), abs=1e-3)
        assert sizes[:, 0].tolist() == (answered >= thresholds.set_threshold).sum(axis=1).tolist()
    far_known = thresholds.known(model.distances(far))
    assert (far_known < KNOWN_LIMIT).all()
    assert (thresholds.known(model.distances(held_back)) >= KNOWN_LIMIT).mean() >= 0.98


@pytest.mark.parametrize("coverage", [pytest.param(0.8, id="80"), pytest.param(0.95, id="95")])
def test_label_sets_cover_the_share_that_was_asked_for(coverage: float) -> None:
    """Images of the same kind as those of the calibration: the guarantee of conformal prediction."""
    targets = np.repeat(np.arange(NUM_CLASSES), 500)
    thresholds = calibrate(np.ones(len(targets)), answers(targets, seed=0), targets, coverage=coverage)
    others = answers(targets, seed=1)
    sizes = (others >= thresholds.set_threshold).sum(axis=1)
    scores = set_scores(np.ones(len(targets)), sizes, others, targets)
    assert scores["coverage"] == pytest.approx(coverage, abs=0.02)


def test_too_few_validation_images_make_sets_of_all_classes() -> None:
    """Eighteen cannot show that nineteen in twenty are covered; nineteen can."""
    targets = np.zeros(19, np.int64)
    few, enough = (
        calibrate(np.ones(count), answers(targets[:count], seed=0), targets[:count]) for count in (18, 19)
    )
    assert few.set_threshold == 0
    assert enough.set_threshold > 0


@pytest.mark.parametrize("temperature", [pytest.param(0.5, id="too_flat"), pytest.param(2.0, id="too_sharp")])
def test_the_temperature_undoes_what_was_done_to_the_logits(temperature: float) -> None:
    """Calibrated answers whose logits were multiplied or divided."""
    targets = np.repeat(np.arange(NUM_CLASSES), 500)
    distorted = temper(answers(targets, seed=0), 1 / temperature)
    assert fit_temperature(distorted, targets) == pytest.approx(temperature, rel=0.1)


def test_right_answers_alone_do_not_ask_for_certainty() -> None:
    """Of 40 right answers the probabilities become about 41 in 42, and not 1."""
    targets = np.repeat(np.arange(NUM_CLASSES), 10)
    flat = temper(np.eye(NUM_CLASSES, dtype=np.float32)[targets] * 0.6 + 0.1, 1.0)
    tempered = temper(flat, fit_temperature(flat, targets))
    assert tempered.max(axis=1).mean() == pytest.approx(41.25 / 42, abs=0.01)


def test_auroc_counts_the_pairs() -> None:
    """By hand: one of four pairs is the wrong way round, a tie is half."""
    assert auroc([0.9, 0.4], [0.5, 0.1]) == 0.75
    assert auroc([0.5], [0.5]) == 0.5
    assert auroc([0.9, 0.8], [0.1]) == 1
