import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fruitstand.artefacts import read_json
from fruitstand.manifest import PreparedData, read_prepared, write_manifest
from fruitstand.runs import Run, read_run
from training.evaluate.evaluate import evaluate_run
from training.evaluate.model_card import CARD_NAME, render_card

FIXED = (
    "1-NN", "top-1", "top-5", "95 %", "macro F1", "Fruits-360", "copyright 2017-", "CC BY-SA 4.0",
)  # fmt: skip
"""What holds a figure and is no measured number."""


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from _leaves(one)
    elif isinstance(value, list):
        yield len(value)
        for one in value:
            yield from _leaves(one)
    else:
        yield value


def _numbers(text: str) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)*", text)


def _known_numbers(meta: dict) -> set[str]:
    """Every number that meta.json gives, as a card may write it."""
    known: set[str] = set()
    for leaf in _leaves(meta):
        known.update(_numbers(str(leaf)))
        if isinstance(leaf, float):
            known.update((f"{leaf:.4f}", f"{leaf:.0f}"))
    for one in meta["evaluations"].values():
        confidence = sum(row["count"] * row["confidence"] for row in one["reliability"]) / one["num_images"]
        known.add(f"{confidence:.4f}")
        known.update(str(one["num_images"] - count) for count in (one["seen_in_training"] or {}).values())
    return known


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Run:
    """The session's run, to change."""
    return read_run(Path(shutil.copytree(run.directory, tmp_path / "run")))


def test_every_number_of_the_card_comes_from_meta(run: Run) -> None:
    """Nothing is measured, and nothing is claimed, anywhere else."""
    card = (run.directory / CARD_NAME).read_text()
    assert card == render_card(read_json(run.directory / "meta.json"))
    for phrase in FIXED:
        card = card.replace(phrase, "")
    numbers = _numbers(card)
    assert len(numbers) > 60
    assert [number for number in numbers if number not in _known_numbers(run.meta)] == []


def test_a_changed_number_changes_the_card(run: Run) -> None:
    """Each measured one, so none is written into the template."""
    (name,) = run.meta["evaluations"]
    for path in (
        ("top1",),
        ("ece",),
        ("macro_f1",),
        ("num_images",),
        ("baseline", "nearest_neighbour", "top1"),
    ):
        meta = json.loads(json.dumps(run.meta))
        inner = meta["evaluations"][name]
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = 123
        assert render_card(meta) != render_card(run.meta), path
        assert "123" in render_card(meta), path


def test_a_second_evaluation_appears_and_a_repeated_one_replaces_itself(
    copy: Run, prepared: PreparedData, tmp_path: Path
) -> None:
    """Another data set is another line; what was known before stays."""
    shutil.copytree(prepared.directory, tmp_path / "elsewhere")
    evaluate_run(copy.directory, data_directory=tmp_path / "elsewhere", split="val")
    evaluate_run(copy.directory, data_directory=tmp_path / "elsewhere", split="val")
    meta = read_run(copy.directory).meta
    assert list(meta["evaluations"]) == [f"{prepared.directory.name}-test", "elsewhere-val"]
    assert meta["metrics"] == copy.meta["metrics"]
    card = (copy.directory / CARD_NAME).read_text()
    assert card.count("| elsewhere-val: generated, classic split |") == 1
    assert card.count(f"| {prepared.directory.name}-test: generated, classic split |") == 1
    assert (copy.directory / "evaluation" / "elsewhere-val" / "evaluation.json").is_file()


def test_an_evaluation_into_another_folder_leaves_the_run_alone(copy: Run, tmp_path: Path) -> None:
    """So that a run on a read-only disk can be evaluated."""
    before = {path: path.stat().st_mtime_ns for path in copy.directory.rglob("*")}
    evaluate_run(copy.directory, data_directory=None, split="val", out=tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in copy.directory.rglob("*")} == before


def test_the_card_says_generated_leaked_and_what_is_not_measured(run: Run) -> None:
    """In words, beside the numbers."""
    card = (run.directory / CARD_NAME).read_text()
    assert "a program of this project painted the images; they show no real fruit" in card
    assert "CC BY-SA" not in card
    assert "0 images show a new object, 0 are of a new film, 80 are new files" in card
    assert "On objects it has never seen (object-disjoint): not measured." in card
    assert "the accuracy shows that the pipeline works" in card


def test_object_disjoint_is_what_shares_no_object_with_training(
    copy: Run, prepared: PreparedData, tmp_path: Path
) -> None:
    """Counted from the manifests, whatever the split calls itself."""
    shutil.copytree(prepared.directory, tmp_path / "others")
    rows = [replace(row, object=f"another {row.object}") for row in prepared.rows]
    write_manifest(tmp_path / "others", rows, split_kind="classic", split_details=prepared.split_details)
    read_prepared(tmp_path / "others")
    evaluate_run(copy.directory, data_directory=tmp_path / "others", split="test")
    card = (copy.directory / CARD_NAME).read_text()
    assert "every object: none was in training (object-disjoint)" in card
    assert "not measured" not in card


def test_real_fruit_is_shown_with_its_licence(run: Run) -> None:
    """Author, licence, and what it asks; a card on other pictures says nothing of fruit."""
    for source, says in (
        ("moltean/fruits/versions/100", "copyright 2017- Mihai Oltean, licence CC BY-SA 4.0"),
        ("my photographs", "this project does not know its licence"),
    ):
        meta = {**run.meta, "data": {**run.meta["data"], "source": source}}
        assert says in render_card(meta)
        assert ("usually one single object" in render_card(meta)) is ("fruits" in source)
        assert ("white background" in render_card(meta)) is ("fruits" in source)


def test_the_card_names_hardware_and_date_where_the_run_recorded_them(run: Run) -> None:
    """Older runs did not: the lines are left out."""
    meta = {**run.meta, "hardware": {"cpu": "Some CPU", "num_cores": 7}, "date": "2031-01-02"}
    assert "- hardware: cpu Some CPU, num_cores 7\n" in render_card(meta)
    assert "- finished: 2031-01-02\n" in render_card(meta)
    tuned = {"run": "base", "weights_sha256": "abc", "num_classes_kept": 2}
    assert "- fine-tuned from: base, weights abc\n" in render_card({**meta, "finetuned_from": tuned})
    without = {key: value for key, value in run.meta.items() if key not in ("hardware", "date")}
    assert "- hardware" not in render_card(without)
