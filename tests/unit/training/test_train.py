import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from fruitstand.artefacts import sha256_file
from fruitstand.errors import ArtefactError, DataError, TrainingError, UsageError
from fruitstand.manifest import PreparedData
from fruitstand.runs import Run
from training.augment import augment, to_size
from training.config import TrainConfig
from training.evaluate import evaluate_run
from training.model import create_model
from training.pixels import ShuffledBatches
from training.train import train

TINY = TrainConfig(model_name="resnet10t", epochs=2, batch_size=16, lr=0.02)


def test_a_run_holds_what_the_contract_promises(run: Run) -> None:
    """Every file of ARCHITECTURE's run folder is there, and meta.json says where it came from."""
    names = {path.name for path in run.directory.iterdir()}
    assert {
        "model.safetensors",
        "last.ckpt",
        "meta.json",
        "metrics.csv",
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
    metrics = evaluate_run(run.directory, data_directory=None, split="test")
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


def test_an_interrupted_run_goes_on_from_its_last_epoch(
    prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in its second epoch and resumed, it ends with the weights of an uninterrupted run."""
    from training.model import Classifier

    train(TINY, data_directory=prepared.directory, out=tmp_path / "whole")
    step = Classifier.training_step

    def interrupted(self, batch, index):
        if self.current_epoch == 1:
            raise RuntimeError("pulled the plug")
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", interrupted)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            train(TINY, data_directory=prepared.directory, out=tmp_path / "cut")
    assert not (tmp_path / "cut" / "meta.json").exists()
    other = TrainConfig(**{**TINY.to_dict(), "lr": 0.5})
    with pytest.raises(ArtefactError, match="other settings"):
        train(other, data_directory=prepared.directory, out=tmp_path / "cut", resume=True)
    train(TINY, data_directory=prepared.directory, out=tmp_path / "cut", resume=True)
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    histories = [
        [
            {key: value for key, value in row.items() if key != "seconds"}
            for row in json.loads((tmp_path / name / "meta.json").read_text())["epochs"]
        ]
        for name in ("whole", "cut")
    ]
    assert histories[0] == histories[1]
    assert len(histories[0]) == 2


def test_overwrite_keeps_the_old_run_until_the_new_one_is_finished(
    run: Run, prepared: PreparedData, tmp_path: Path
) -> None:
    """A run that cannot even start leaves the old one in place; a folder that is no run is left alone."""
    copy = shutil.copytree(run.directory, tmp_path / "run")
    unknown = TrainConfig(**{**TINY.to_dict(), "model_name": "resnet999"})
    with pytest.raises(UsageError, match="resnet999"):
        train(unknown, data_directory=prepared.directory, out=copy, overwrite=True)
    assert sha256_file(copy / "meta.json") == sha256_file(run.directory / "meta.json")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match="is no run folder"):
        train(TINY, data_directory=prepared.directory, out=tmp_path / "photos", overwrite=True)
    train(TINY, data_directory=prepared.directory, out=copy, overwrite=True)
    assert json.loads((copy / "meta.json").read_text())["config"]["epochs"] == 2
    assert [path.name for path in tmp_path.iterdir() if "replaced" in path.name] == []


def test_a_loss_that_is_no_number_stops_training(prepared: PreparedData, tmp_path: Path) -> None:
    """The step is named and the run stays unfinished."""
    config = TrainConfig(**{**TINY.to_dict(), "lr": 1e30})
    with pytest.raises(TrainingError, match=r"at step \d+"):
        train(config, data_directory=prepared.directory, out=tmp_path / "run")
    assert not (tmp_path / "run" / "meta.json").exists()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        pytest.param({"model_name": "vgg16"}, "model_name", id="not_a_resnet"),
        pytest.param({"epochs": 0}, "epochs", id="epochs"),
        pytest.param({"lr": -1.0}, "lr", id="lr"),
        pytest.param({"input_size": 16}, "input_size", id="input_size"),
        pytest.param({"precision": "int4"}, "precision", id="precision"),
    ],
)
def test_settings_outside_what_is_allowed_are_named(values: dict, says: str) -> None:
    """A wrong setting is refused before anything starts."""
    with pytest.raises(ValueError, match=says):
        TrainConfig(**values)


def test_an_unknown_model_and_missing_data_are_named(prepared: PreparedData, tmp_path: Path) -> None:
    """Both errors say what to do."""
    with pytest.raises(UsageError, match="resnet999"):
        create_model("resnet999", num_classes=2)
    with pytest.raises(DataError, match="fruitstand data prepare"):
        train(TINY, data_directory=tmp_path, out=tmp_path / "run")


def test_pretrained_weights_out_of_reach_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Training never goes on silently from random weights."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(TrainingError, match="--pretrained"):
        create_model("resnet10t", num_classes=2, pretrained=True)


@pytest.mark.parametrize("model_name", ["resnet10t", "resnet18", "resnet50", "resnet101"])
def test_any_resnet_of_timm_can_be_made(model_name: str) -> None:
    """The classifier has our classes, the contract timm's mean and std."""
    from training.model import resolve_preprocessing

    model = create_model(model_name, num_classes=7)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    assert resolve_preprocessing(model, 100).input_size == (100, 100)


def test_progressive_sizes_end_at_the_full_size() -> None:
    """Small first, the served size last; without it always the full size."""
    assert [TrainConfig(epochs=7).train_size(epoch) for epoch in range(7)] == [64] * 4 + [100] * 3
    assert TrainConfig(epochs=1).train_size(0) == 100
    assert TrainConfig(progressive=False).train_size(0) == 100
    assert [TrainConfig(epochs=2, input_size=224).train_size(epoch) for epoch in range(2)] == [144, 224]


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    """Every image once an epoch, in an order that a resumed run repeats."""
    first, again, other = ShuffledBatches(10, 2, 0), ShuffledBatches(10, 2, 0), ShuffledBatches(10, 2, 0)
    other.set_epoch(1)
    assert list(first) == list(again) != list(other)
    assert sorted(position for batch in other for position in batch) == list(range(10))


def test_augmentation_keeps_shape_and_range_and_white_stays_white() -> None:
    """What moves in from outside is white; the same generator gives the same pictures."""
    white = torch.full((4, 50, 50, 3), 255, dtype=torch.uint8)
    batch = to_size(white, 48)
    assert batch.shape == (4, 3, 48, 48)
    out = augment(batch, torch.Generator().manual_seed(0))
    assert torch.equal(out, augment(batch, torch.Generator().manual_seed(0)))
    assert out.shape == batch.shape
    assert out.max() <= 255
    assert all(image.unique().numel() == 1 for image in out)  # only the light changed
