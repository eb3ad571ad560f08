"""What a run tells while it trains: a line an epoch, `metrics.csv`, TensorBoard, an MLflow store.

All get each epoch's row as it comes. MLflow writes into a sqlite file in the run folder, or where
MLFLOW_TRACKING_URI says, and gets the finished model as a version of a registered model.
"""

import csv
import io
import os
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import Progress as Bar

from fruitstand.artefacts import read_json, write_bytes, write_json
from fruitstand.errors import UsageError
from fruitstand.runs import WEIGHTS_NAME
from training.fit.config import TrainConfig

METRICS_NAME = "metrics.csv"
WALL_CLOCK = ("images_per_s", "data_wait_pct", "seconds")
"""Columns that differ between two runs that are otherwise the same."""
EXPERIMENT = "fruitstand"
RUN_RECORD = "mlflow.json"
"""Which MLflow run a folder belongs to, so that a resumed run goes on in it."""


def write_history(path: Path, rows: list[dict[str, float]]) -> None:
    """Write one row an epoch, atomically."""
    if not rows:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


class EpochLog:
    """On stderr: a bar where it is a terminal, and a line an epoch; silent in all processes but the first."""

    def __init__(self, epochs: int, *, silent: bool) -> None:
        self._epochs = epochs
        self._console = Console(stderr=True, highlight=False, quiet=silent)
        self._bar: Bar | None = None

    def start(self, epoch: int, *, size: int, done: int, total: int) -> None:
        """Show the bar of an epoch."""
        self._bar = Bar(
            console=self._console,
            disable=not self._console.is_terminal or self._console.quiet,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(
            f"epoch {epoch + 1}/{self._epochs}, {size} px", total=total, completed=done
        )

    def advance(self) -> None:
        """One batch more."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def print(self, row: dict[str, float]) -> None:
        """The line of an epoch."""
        self._console.print(
            f"epoch {row['epoch'] + 1}/{self._epochs} at {row['size_px']} px:"
            f" train_loss {row['train_loss']:.4f}, val_loss {row['val_loss']:.4f},"
            f" val_top1 {row['val_top1']:.4f}, {row['images_per_s']:.0f} images/s,"
            f" data wait {row['data_wait_pct']:.1f} %, {row['seconds']:.0f} s"
        )

    def note(self, text: str) -> None:
        """Say something else."""
        self._console.print(text)


class Tracker(Protocol):
    """Takes what a run has to tell."""

    def epoch(self, row: dict[str, float]) -> None:
        """One epoch's row."""

    def finish(self, meta: dict[str, Any]) -> dict[str, Any]:
        """The run is done; returns what `meta.json` shall say of this tracker."""


def create_trackers(config: TrainConfig, out: Path, *, first_epoch: int) -> list[Tracker]:
    """Those the settings name.

    Args:
        config: the settings.
        out: the run folder.
        first_epoch: where a resumed run goes on, else 0.

    Raises:
        UsageError: a package is missing.
    """
    trackers: list[Tracker] = []
    try:
        if "tensorboard" in config.loggers:
            trackers.append(_TensorBoard(out, first_epoch))
        if "mlflow" in config.loggers:
            trackers.append(_Mlflow(config, out))
    except ModuleNotFoundError as exc:
        raise UsageError(f"loggers: {exc.name} is not installed; pip install 'fruitstand[tracking]'") from exc
    return trackers


class _TensorBoard:
    def __init__(self, out: Path, first_epoch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What a killed process wrote of the epoch it did not finish is hidden.
        self._writer = SummaryWriter(out / "tensorboard", purge_step=first_epoch)

    def epoch(self, row: dict[str, float]) -> None:
        for key, value in row.items():
            if key != "epoch":
                self._writer.add_scalar(key, value, row["epoch"])
        self._writer.flush()

    def finish(self, meta: dict[str, Any]) -> dict[str, Any]:
        self._writer.close()
        return {"tensorboard": "tensorboard"}


class _Mlflow:
    def __init__(self, config: TrainConfig, out: Path) -> None:
        from mlflow import MlflowClient

        given = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(given or f"sqlite:///{out.resolve() / 'mlflow.db'}")
        self._out = out
        record = out / RUN_RECORD
        if record.is_file():
            self._run_id = str(read_json(record)["run_id"])
            return
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            artefacts = None if given else (out.resolve() / "mlflow").as_uri()
            experiment_id = self._client.create_experiment(EXPERIMENT, artifact_location=artefacts)
        else:
            experiment_id = experiment.experiment_id
        self._run_id = self._client.create_run(experiment_id, run_name=out.name).info.run_id
        for key, value in config.to_dict().items():
            self._client.log_param(self._run_id, key, value)
        write_json(record, {"run_id": self._run_id})

    def epoch(self, row: dict[str, float]) -> None:
        for key, value in row.items():
            if key != "epoch":
                self._client.log_metric(self._run_id, key, value, step=int(row["epoch"]))

    def finish(self, meta: dict[str, Any]) -> dict[str, Any]:
        client = self._client
        for name in (WEIGHTS_NAME, "metrics.csv", "curves.png"):
            client.log_artifact(self._run_id, str(self._out / name), artifact_path="model")
        client.log_dict(self._run_id, meta, "model/meta.json")
        if not client.search_registered_models(f"name = '{EXPERIMENT}'"):
            client.create_registered_model(EXPERIMENT)
        # A run that was killed right here is not registered twice.
        versions = client.search_model_versions(f"run_id = '{self._run_id}'")
        source = f"{client.get_run(self._run_id).info.artifact_uri}/model"
        version = versions[0] if versions else client.create_model_version(EXPERIMENT, source, self._run_id)
        client.set_terminated(self._run_id)
        return {"mlflow": {"run_id": self._run_id, "model": EXPERIMENT, "version": int(version.version)}}
