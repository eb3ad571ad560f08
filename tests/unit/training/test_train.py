import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fruitstand.artefacts import sha256_file
from fruitstand.errors import DataError, TrainingError, UsageError
from fruitstand.manifest import PreparedData
from fruitstand.runs import Run
from training.evaluate.evaluate import evaluate_run
from training.fit.config import TrainConfig
from training.fit.loop import read_checkpoint
from training.fit.model import create_model
from training.fit.train import train

TINY = TrainConfig(model_name="resnet10t", epochs=2, batch_size=24, lr=0.02, input_size=32, small_share=0.0)


def test_a_run_holds_what_the_contract_promises(run: Run) -> None:
    """Every file of ARCHITECTURE's run folder is there, and meta.json says where it came from."""
    names = {path.name for path in run.directory.iterdir()}
    assert {
        "model.safetensors",
        "last.ckpt",
        "meta.json",
        "metrics.csv",
        "augmentation.png",
        "curves.png",
        "confusion.png",
    } <= names
    meta = json.loads((run.directory / "meta.json").read_text())
    assert meta["data"]["source"] == "generated"
    assert meta["metrics"]["test"]["num_images"] == 80
    with (run.directory / "metrics.csv").open() as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == [0, 1, 2]


def test_an_evaluation_repeats_the_runs_own_numbers(run: Run) -> None:
    """What training wrote at its end is what evaluate finds in the saved weights."""
    metrics = evaluate_run(run.directory, data_directory=None, split="test").to_json()
    assert metrics["top1"] == run.meta["metrics"]["test"]["top1"]
    assert metrics["ece"] == pytest.approx(run.meta["metrics"]["test"]["ece"], abs=1e-6)


def test_an_existing_run_is_neither_overwritten_nor_mixed(run: Run, prepared: PreparedData) -> None:
    """It takes --resume or --overwrite, and a finished run has nothing to resume."""
    before = (run.directory / "meta.json").read_bytes()
    with pytest.raises(UsageError, match=r"--resume.*--overwrite"):
        train(TINY, data_directory=prepared.directory, out=run.directory)
    with pytest.raises(UsageError, match="finished"):
        train(TINY, data_directory=prepared.directory, out=run.directory, resume=True)
    assert (run.directory / "meta.json").read_bytes() == before


def test_overwrite_keeps_the_old_run_until_the_new_one_is_finished(
    run: Run, prepared: PreparedData, tmp_path: Path
) -> None:
    """A run that cannot even start leaves the old one in place; a folder that is no run is left alone."""
    copy = shutil.copytree(run.directory, tmp_path / "run")
    unknown = replace(TINY, model_name="resnet999")
    with pytest.raises(UsageError, match="resnet999"):
        train(unknown, data_directory=prepared.directory, out=copy, overwrite=True)
    assert sha256_file(copy / "meta.json") == sha256_file(run.directory / "meta.json")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match="not a run folder"):
        train(TINY, data_directory=prepared.directory, out=tmp_path / "photos", overwrite=True)
    train(TINY, data_directory=prepared.directory, out=copy, overwrite=True)
    assert json.loads((copy / "meta.json").read_text())["config"]["epochs"] == 2
    assert [path.name for path in tmp_path.iterdir() if "replaced" in path.name] == []


def test_a_loss_that_is_no_number_stops_training(prepared: PreparedData, tmp_path: Path) -> None:
    """The step is named, the run stays unfinished, and the checkpoint left behind holds finite weights."""
    config = replace(TINY, lr=1e30, checkpoint_seconds=0.0)
    with pytest.raises(TrainingError, match=r"at step \d+.*--set lr"):
        train(config, data_directory=prepared.directory, out=tmp_path / "run")
    assert not (tmp_path / "run" / "meta.json").exists()
    state = read_checkpoint(tmp_path / "run" / "last.ckpt")
    assert state["progress"]["step"] >= 1
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_an_unknown_model_and_missing_data_are_named(prepared: PreparedData, tmp_path: Path) -> None:
    """Both errors say what to do."""
    with pytest.raises(UsageError, match="resnet999"):
        create_model("resnet999", num_classes=2, input_size=32)
    with pytest.raises(DataError, match="fruitstand data prepare"):
        train(TINY, data_directory=tmp_path, out=tmp_path / "run")


def test_pretrained_weights_out_of_reach_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Training never goes on silently from random weights."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(TrainingError, match="cannot download those of"):
        create_model("resnet10t", num_classes=2, input_size=32, hub="timm")


def test_a_models_own_preprocessing_is_timms() -> None:
    """Filter, crop share and crop mode come with the model; without being asked nothing is cropped off."""
    from timm.data import resolve_model_data_config

    from training.fit.model import resolve_preprocessing

    model = create_model("resnet50", num_classes=7, input_size=224)
    wanted, got = resolve_model_data_config(model), resolve_preprocessing(model, 224, "timm")
    assert (got.interpolation, got.crop_pct, got.crop_mode) == (
        wanted["interpolation"],
        wanted["crop_pct"],
        wanted["crop_mode"],
    )
    assert got.crop_pct < 1 == resolve_preprocessing(model, 224).crop_pct
    model.pretrained_cfg["crop_mode"] = "border"
    with pytest.raises(UsageError, match="crop_mode: got 'border'"):
        resolve_preprocessing(model, 224, "timm")
