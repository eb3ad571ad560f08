"""Report the progress of a run: a line per epoch on stderr, `metrics.csv`, TensorBoard and MLflow.

MLflow writes to a SQLite file in the run folder, or to MLFLOW_TRACKING_URI. The finished model becomes a
version of the registered model `fruitstand`.
"""

import csv
import io
import os
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from fruitstand.artefacts import read_json, write_bytes, write_json
from fruitstand.errors import UsageError
from fruitstand.runs import WEIGHTS_NAME
from training.fit.config import TrainConfig

METRICS_NAME = "metrics.csv"
WALL_CLOCK = ("images_per_s", "data_wait_pct", "seconds")
"""Columns that differ between two otherwise identical runs."""
EXPERIMENT = "fruitstand"
RUN_RECORD = "mlflow.json"
"""File with the MLflow run id, so that a resumed run continues the same MLflow run."""


def write_history(path: Path, rows: list[dict[str, float]]) -> None:
    """Write one CSV row per epoch, atomically."""
    if not rows:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def print_epoch(row: dict[str, float], epochs: int) -> None:
    """Print the line of an epoch on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"epoch {row['epoch'] + 1}/{epochs} at {row['size_px']} px:"
        f" train_loss {row['train_loss']:.4f}, val_loss {row['val_loss']:.4f},"
        f" val_top1 {row['val_top1']:.4f}, {row['images_per_s']:.0f} images/s,"
        f" data wait {row['data_wait_pct']:.1f} %, {row['seconds']:.0f} s"
    )


class Tracker(Protocol):
    """Records the epochs of a run."""

    def epoch(self, row: dict[str, float]) -> None:
        """Record one epoch's row."""

    def finish(self, meta: dict[str, Any]) -> dict[str, Any]:
        """Record the finished run; return this tracker's entry in `meta.json`."""


def create_trackers(config: TrainConfig, out: Path, *, first_epoch: int) -> list[Tracker]:
    """Create the trackers named in `config.loggers`.

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

        # Hides what a killed process wrote of its unfinished epoch.
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
        # A run that was killed here and resumed must not be registered twice.
        versions = client.search_model_versions(f"run_id = '{self._run_id}'")
        source = f"{client.get_run(self._run_id).info.artifact_uri}/model"
        version = versions[0] if versions else client.create_model_version(EXPERIMENT, source, self._run_id)
        client.set_terminated(self._run_id)
        return {"mlflow": {"run_id": self._run_id, "model": EXPERIMENT, "version": int(version.version)}}
