from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from fruitstand.artefacts import read_json
from fruitstand.errors import UsageError
from fruitstand.manifest import PreparedData
from fruitstand.runs import Run, read_run
from training.fit.config import TrainConfig
from training.fit.model import create_model, load_from_run
from training.fit.train import train

TINY = TrainConfig(
    model_name="resnet10t",
    epochs=1,
    batch_size=24,
    lr=0.02,
    input_size=32,
    small_share=0.0,
    precision="32-true",
)


def test_a_run_records_all_that_made_it(run: Run) -> None:
    """Settings, data, commit, lock, versions, machine, time and what the processes ended with."""
    meta = run.meta
    assert TrainConfig.from_dict(meta["config"]).model_name == "resnet10t"
    assert meta["config"]["recipe"] == "classic"
    assert len(meta["data"]["manifest_sha256"]) == len(meta["lock_sha256"]) == 64
    assert {"python", "torch", "timm", "lightning"} <= set(meta["versions"])
    assert meta["hardware"]["num_cores"] >= 1
    assert meta["processes"]["weights_sha256"] == meta["processes"]["weights_sha256"][:1]
    assert 0 <= meta["data_wait_pct"] < 100
    assert meta["train_s"] > 0
    assert meta["finetuned_from"] is None


def test_finetuning_keeps_classes_by_name(run: Run, prepared: PreparedData, tmp_path: Path) -> None:
    """Rows of the classifier follow their label to another place; a new label starts fresh."""
    labels = [run.labels[2], "Dragonfruit 1", run.labels[0]]
    model = create_model("resnet10t", num_classes=3, input_size=32)
    fresh = model.get_classifier().weight.detach().clone()
    assert load_from_run(model, run, labels) == 2
    theirs = safetensors.torch.load_file(run.weights)
    rows = model.get_classifier().weight
    assert torch.equal(rows[0], theirs["fc.weight"][2])
    assert torch.equal(rows[1], fresh[1])
    assert torch.equal(rows[2], theirs["fc.weight"][0])
    assert torch.equal(model.state_dict()["layer1.0.conv1.weight"], theirs["layer1.0.conv1.weight"])
    config = replace(TINY, lr=1e-9, min_lr=0.0, weight_decay=0.0)
    train(config, data_directory=prepared.directory, out=tmp_path / "fine", finetune_from=run.directory)
    fine = read_run(tmp_path / "fine")
    assert fine.meta["finetuned_from"] == {
        "run": "tiny",
        "weights_sha256": run.meta["weights_sha256"],
        "num_classes_kept": 4,
    }
    ours = safetensors.torch.load_file(fine.weights)
    torch.testing.assert_close(ours["fc.weight"], theirs["fc.weight"], atol=1e-6, rtol=0)


def test_finetuning_from_another_architecture_is_refused(
    run: Run, prepared: PreparedData, tmp_path: Path
) -> None:
    """And the flag that would fit is named."""
    with pytest.raises(UsageError, match="--model resnet10t"):
        train(
            replace(TINY, model_name="resnet18"),
            data_directory=prepared.directory,
            out=tmp_path / "run",
            finetune_from=run.directory,
        )
    assert not (tmp_path / "run").exists()


def test_the_best_epoch_is_kept(prepared: PreparedData, tmp_path: Path) -> None:
    """The first of those with the highest validation top-1."""
    config = replace(TINY, epochs=3, lr=1e-12, min_lr=0.0, keep="best", ema_decay=0.5)
    meta = train(config, data_directory=prepared.directory, out=tmp_path / "run")
    assert meta is not None
    top1 = [row["val_top1"] for row in meta["epochs"]]
    assert meta["saved_epoch"] == top1.index(max(top1))
    assert not (tmp_path / "run" / "best.safetensors").exists()


@pytest.mark.parametrize("opt", ["adamw", "lamb", "nadam"])
def test_any_optimiser_of_timm_trains(opt: str) -> None:
    """By name; biases and norms do not decay."""
    from training.fit.steps import create_optimizer

    model = create_model("resnet10t", num_classes=2, input_size=32)
    optimizer = create_optimizer(model, replace(TINY, opt=opt, weight_decay=0.1))
    decays = {
        parameter.ndim > 1: group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert decays == {True: 0.1, False: 0.0}


def test_an_unknown_optimiser_is_named(prepared: PreparedData, tmp_path: Path) -> None:
    """Before anything is trained."""
    with pytest.raises(UsageError, match="opt: got 'sdg'"):
        train(replace(TINY, opt="sdg"), data_directory=prepared.directory, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_schedule_rises_to_lr_and_falls_to_min_lr() -> None:
    """By update, the peak at the end of the rise."""
    from training.fit.steps import create_schedule

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = create_schedule(optimizer, replace(TINY, lr=0.1, epochs=4, warmup_share=0.25), 10)
    rates = []
    for step in range(41):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert np.argmax(rates) == 10
    assert rates[10] == pytest.approx(0.1)
    assert rates[0] == rates[40] == pytest.approx(1e-5)
    assert rates[25] == pytest.approx(0.05, rel=0.01)


@pytest.mark.nightly
def test_trackers_get_every_epoch_and_the_model(
    prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard's events and MLflow's metrics are metrics.csv's rows; the model is a registered version."""
    mlflow = pytest.importorskip("mlflow", reason="needs the tracking extra")
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the tracking extra"
    )
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = tmp_path / "run"
    train(
        replace(TINY, epochs=2, loggers=("tensorboard", "mlflow")), data_directory=prepared.directory, out=out
    )
    meta = read_json(out / "meta.json")
    accumulator = events.EventAccumulator(str(out / "tensorboard")).Reload()
    seen = [(event.step, event.value) for event in accumulator.Scalars("train_loss")]
    assert seen == [(row["epoch"], pytest.approx(row["train_loss"])) for row in meta["epochs"]]
    client = mlflow.MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    recorded = meta["trackers"]["mlflow"]
    losses = client.get_metric_history(recorded["run_id"], "val_loss")
    assert [(one.step, one.value) for one in losses] == [
        (row["epoch"], row["val_loss"]) for row in meta["epochs"]
    ]
    version = client.get_model_version("fruitstand", str(recorded["version"]))
    assert version.run_id == recorded["run_id"]
    names = {Path(one.path).name for one in client.list_artifacts(recorded["run_id"], "model")}
    assert {"model.safetensors", "meta.json"} <= names
