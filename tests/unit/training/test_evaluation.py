import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fruitstand.errors import DataError, UsageError
from fruitstand.labels import write_labels
from fruitstand.manifest import LABELS_NAME, PreparedData, read_prepared, write_manifest
from fruitstand.runs import Run
from training.evaluate.evaluate import evaluate_answers, evaluate_run
from training.evaluate.mistakes import Mistake, write_mistake_sheet
from training.evaluate.predict import predict_probabilities
from training.evaluate.report import report_answers

FILES = {
    "evaluation.json",
    "per_class.csv",
    "confusion.csv",
    "slices.csv",
    "mistakes.csv",
    "confusion.png",
    "reliability.png",
    "mistakes.png",
}


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _answered(run: Run, data: PreparedData, *, known: float | None = None):
    """A server that answers what the run does, its classes in another order than the run's."""

    def ask(paths: list[Path]) -> Iterator[tuple[dict[str, float], float | None]]:
        rows = {data.directory / row.path: row for row in data.rows}
        for row in predict_probabilities(run, data, [rows[path] for path in paths]):
            by_label = zip(run.labels, row.tolist(), strict=True)
            yield dict(sorted(by_label, key=lambda pair: -pair[1])), known

    return ask


def test_a_run_and_a_server_give_the_same_numbers_and_files(
    run: Run, prepared: PreparedData, tmp_path: Path
) -> None:
    """Where the answers are the same; only what names the one evaluated differs."""
    offline = evaluate_run(run.directory, data_directory=None, split="test", out=tmp_path / "run").to_json()
    served = evaluate_answers(
        prepared.directory, "test", _answered(run, prepared), out=tmp_path / "server", url="somewhere:1"
    ).to_json()
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    assert {path.name for path in (tmp_path / "server").iterdir()} == FILES
    about = {"model_name", "url", "seen_in_training"}
    assert {key: value for key, value in offline.items() if key not in about} == {
        key: value for key, value in served.items() if key not in about
    }
    for name in FILES - {"evaluation.json"}:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "server" / name).read_bytes(), name
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == offline


@pytest.mark.parametrize("known", [pytest.param(0.9, id="known"), pytest.param(0.1, id="not_known")])
def test_a_servers_report_has_the_share_of_known_images(
    known: float, run: Run, prepared: PreparedData
) -> None:
    """From what it says of each image."""
    found = evaluate_answers(prepared.directory, "test", _answered(run, prepared, known=known))
    assert found.known == (known >= 0.5)


def _biased(data: PreparedData) -> tuple[np.ndarray, list[str]]:
    """Answers that are right, but for ten images of the first class, five of them surely."""
    rows, labels = data.split("test"), data.labels
    probabilities = np.full((len(rows), len(labels)), 0.1, np.float32)
    for number, row in enumerate(rows):
        probabilities[number, labels.index(row.label)] = 0.7
    probabilities[:5] = [0.0, 0.0, 0.9, 0.1]
    probabilities[5:10] = [0.0, 0.6, 0.4, 0.0]
    return probabilities, labels


def test_the_tables_tell_what_was_confused(prepared: PreparedData, tmp_path: Path) -> None:
    """JSON and CSV agree with each other and with the answers."""
    probabilities, labels = _biased(prepared)
    result = report_answers(prepared, "test", labels, probabilities, out=tmp_path / "out").to_json()
    assert result["top1"] == pytest.approx(70 / 80)
    assert [(one["answer"], one["count"], one["share"]) for one in result["confusions"]] == [
        (labels[1], 5, 0.25),
        (labels[2], 5, 0.25),
    ]
    confusion = _read_csv(tmp_path / "out" / "confusion.csv")
    assert [int(confusion[0][label]) for label in labels] == [10, 5, 5, 0]
    per_class = _read_csv(tmp_path / "out" / "per_class.csv")
    assert [(row["label"], float(row["recall"])) for row in per_class] == [
        (label, result["per_class"][label]["recall"]) for label in labels
    ]
    assert float(per_class[0]["recall"]) == 0.5
    assert [float(row["nearest_neighbour_recall"]) for row in per_class] == [1.0] * 4
    mistakes = _read_csv(tmp_path / "out" / "mistakes.csv")
    assert [(row["answer"], row["confidence"]) for row in mistakes] == [
        *[(labels[2], "0.9000")] * 5,
        *[(labels[1], "0.6000")] * 5,
    ]
    assert {row["path"] for row in mistakes} == {row.path for row in prepared.split("test")[:10]}
    slices = _read_csv(tmp_path / "out" / "slices.csv")
    assert {row["slice"] for row in slices} == {"fruit", "variety", "brightness"}
    (worst,) = [row for row in slices if row["slice"] == "variety" and row["name"] == labels[0]]
    assert (worst["num_images"], worst["top1"], worst["small"]) == ("20", "0.5", "True")


def test_every_number_has_its_baseline(prepared: PreparedData) -> None:
    """The nearest neighbour and the commonest class, for the whole and for each slice."""
    probabilities, labels = _biased(prepared)
    result = report_answers(prepared, "test", labels, probabilities, out=None).to_json()
    assert result["baseline"]["majority"] == {
        "label": labels[0],
        "top1": 0.25,
        "macro_f1": pytest.approx(0.1),
    }
    assert result["baseline"]["nearest_neighbour"]["top1"] == 1.0
    assert result["baseline"]["nearest_neighbour"]["num_train_images"] == len(prepared.split("train"))
    assert all(one["nearest_neighbour"] == 1.0 for kind in result["slices"].values() for one in kind)


def test_the_pictures_show_something(prepared: PreparedData, tmp_path: Path) -> None:
    """The sheet has a tile for each mistake; without one it says so."""
    probabilities, labels = _biased(prepared)
    report_answers(prepared, "test", labels, probabilities, out=tmp_path / "out")
    for name in ("confusion.png", "reliability.png", "mistakes.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 20, name
    with Image.open(tmp_path / "out" / "mistakes.png") as sheet:
        assert sheet.size == (1200, 34 + 2 * 167)
    write_mistake_sheet(tmp_path / "none.png", prepared.directory, [], "nothing")
    with Image.open(tmp_path / "none.png") as sheet:
        assert sheet.height == 34 + 167


def test_one_bad_object_does_not_fill_the_sheet(prepared: PreparedData, tmp_path: Path) -> None:
    """Each object's surest mistake comes first, so a single one of a second object is seen."""
    rows = prepared.split("test")
    many = [Mistake(rows[0].path, "one", "a", "b", 0.9)] * 48
    write_mistake_sheet(tmp_path / "same.png", prepared.directory, many, "x")
    last = Mistake(rows[-1].path, "other", "a", "b", 0.1)
    write_mistake_sheet(tmp_path / "mixed.png", prepared.directory, [*many, last], "x")
    tiles = [
        [image.crop((left, 34, left + 150, 34 + 112)).tobytes() for left in (0, 150, 300)]
        for image in (Image.open(tmp_path / "same.png"), Image.open(tmp_path / "mixed.png"))
    ]
    assert tiles[0][0] == tiles[1][0]
    assert tiles[0][1] != tiles[1][1]
    assert tiles[0][2] == tiles[1][2]


def test_class_names_of_any_script_and_with_dollars_can_be_drawn(
    prepared: PreparedData, tmp_path: Path
) -> None:
    """A name that the font lacks, or that looks like a formula, stops no evaluation."""
    names = dict(zip(prepared.labels, ["水果", "Äpfel $1 & $2", "c", "d"], strict=True))
    rows = [replace(row, label=names[row.label]) for row in prepared.rows]
    data = replace(prepared, rows=rows, labels=list(names.values()))
    probabilities, labels = _biased(data)
    result = report_answers(data, "test", labels, probabilities, out=tmp_path / "out").to_json()
    assert set(result["per_class"]) == set(names.values())
    assert _read_csv(tmp_path / "out" / "mistakes.csv")[0]["truth"] == "水果"


@pytest.fixture
def copy(prepared: PreparedData, tmp_path: Path) -> PreparedData:
    """The painted folder of the session, to change."""
    shutil.copytree(prepared.directory, tmp_path / "copy")
    return read_prepared(tmp_path / "copy")


def _with_labels(data: PreparedData, names: dict[str, str]) -> PreparedData:
    """The folder with these classes only, under new names."""
    rows = [replace(row, label=names[row.label]) for row in data.rows if row.label in names]
    write_manifest(data.directory, rows, split_kind=data.split_kind, split_details=data.split_details)
    write_labels(data.directory / LABELS_NAME, sorted(names.values()))
    return read_prepared(data.directory)


def test_data_with_some_of_the_classes_are_evaluated(run: Run, copy: PreparedData, tmp_path: Path) -> None:
    """All of the run's classes can be answered; those without images weigh nothing."""
    fewer = _with_labels(copy, {label: label for label in copy.labels[:2]})
    result = evaluate_run(
        run.directory, data_directory=fewer.directory, split="test", out=tmp_path / "out"
    ).to_json()
    assert set(result["per_class"]) == set(copy.labels[:2])
    assert result["num_images"] == 40
    assert list(_read_csv(tmp_path / "out" / "confusion.csv")[0]) == ["truth", *run.labels]
    served = evaluate_answers(fewer.directory, "test", _answered(run, fewer)).to_json()
    assert served["top1"] == result["top1"]
    assert served["macro_f1"] == result["macro_f1"]


def test_data_with_unknown_classes_are_refused_by_name(run: Run, copy: PreparedData, tmp_path: Path) -> None:
    """For a run and for a server; nothing is written."""
    other = _with_labels(copy, {copy.labels[0]: copy.labels[0], copy.labels[1]: "Durian"})
    says = "knows 4 classes, but not 1 of the 2 in these data, such as 'Durian'"
    with pytest.raises(UsageError, match=says):
        evaluate_run(run.directory, data_directory=other.directory, split="test", out=tmp_path / "out")
    with pytest.raises(UsageError, match=says):
        evaluate_answers(other.directory, "test", _answered(run, other), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_image_without_an_answer_ends_the_evaluation(prepared: PreparedData, tmp_path: Path) -> None:
    """Accuracy over what happened to be answered would be no accuracy."""

    def ask(paths: list[Path]) -> Iterator[tuple[dict[str, float], float | None] | str]:
        yield dict.fromkeys(prepared.labels, 0.25), None
        yield "the server was busy"
        yield from ("", "") * len(paths)

    with pytest.raises(DataError, match="the server was busy"):
        evaluate_answers(prepared.directory, "test", ask, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_report_is_left_alone(prepared: PreparedData, run: Run, tmp_path: Path) -> None:
    """An earlier report is replaced as a whole, photographs are not."""
    probabilities, labels = _biased(prepared)
    out = tmp_path / "out"
    report_answers(prepared, "test", labels, probabilities, out=out)
    (out / "old.txt").write_text("of the earlier one")
    report_answers(prepared, "test", labels, probabilities, out=out)
    assert {path.name for path in out.iterdir()} == FILES
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match="not an evaluation report"):
        evaluate_run(run.directory, data_directory=None, split="test", out=tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["one.jpg"]


def test_what_was_seen_in_training_is_counted(run: Run, prepared: PreparedData, tmp_path: Path) -> None:
    """The classic Test has new files of old films; train has old files."""
    result = evaluate_run(run.directory, data_directory=None, split="test", out=tmp_path / "test").to_json()
    assert result["seen_in_training"] == {"files": 0, "films": 80, "objects": 80}
    num = len(prepared.split("train"))
    result = evaluate_run(run.directory, data_directory=None, split="train", out=tmp_path / "train").to_json()
    assert result["seen_in_training"] == {"files": num, "films": num, "objects": num}
