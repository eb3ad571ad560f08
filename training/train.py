"""`fruitstand train`: a timm ResNet on a prepared folder, into a run folder.

The folder fills in this order: `config.json` at the start, `last.ckpt` and `metrics.csv` each epoch, then
`model.safetensors`, the pictures, and `meta.json` last: without it the run is half written.
"""

import logging
import platform
import shutil
import time
import warnings
from dataclasses import replace
from pathlib import Path

import lightning
import safetensors.torch
import timm
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from rich.progress import Progress

from fruitstand import __version__
from fruitstand.artefacts import atomic_file, read_json, sha256_file, write_json
from fruitstand.checkout import git_commit
from fruitstand.errors import ArtefactError, UsageError
from fruitstand.labels import labels_sha256
from fruitstand.manifest import PreparedData, read_prepared
from fruitstand.runs import CHECKPOINT_NAME, META_NAME, WEIGHTS_NAME
from training.config import TrainConfig, resolved_precision
from training.metrics import classification_metrics, confusion_matrix
from training.model import Classifier, create_model, resolve_preprocessing
from training.pixels import SplitPixels, eval_loader, pixel_cache, train_loader
from training.plots import plot_confusion, plot_curves
from training.predict import predict_probabilities

CONFIG_NAME = "config.json"


def train(
    config: TrainConfig, *, data_directory: Path, out: Path, resume: bool = False, overwrite: bool = False
) -> dict:
    """Train one model.

    Args:
        config: the settings.
        data_directory: a prepared folder.
        out: the run folder to make.
        resume: go on with a run that was interrupted, from its last finished epoch.
        overwrite: replace a run that is there.

    Returns:
        What `meta.json` holds.

    Raises:
        UsageError: `out` is taken, or resume does not fit what is there.
        DataError: the prepared folder is not usable.
        TrainingError: pretrained weights cannot be had, or the loss is no number any more.
    """
    data = read_prepared(data_directory)
    config = replace(config, precision=resolved_precision(config.precision))
    _claim(out, config, data, resume=resume, overwrite=overwrite)

    _quiet_lightning()
    lightning.seed_everything(config.seed, verbose=False)
    model = create_model(config.model_name, num_classes=len(data.labels), pretrained=config.pretrained)
    preprocessing = resolve_preprocessing(model, config.input_size)
    pixels = pixel_cache(data, preprocessing)
    train_set, val_set = SplitPixels(data, pixels, "train"), SplitPixels(data, pixels, "val")
    module = Classifier(model, config, preprocessing)
    trainer = lightning.Trainer(
        max_epochs=config.epochs,
        precision=config.precision,
        accelerator="auto",
        devices=1,
        logger=CSVLogger(out, name="", version=""),
        callbacks=[
            ModelCheckpoint(out, filename="last", every_n_epochs=1, save_on_train_epoch_end=True),
            _Progress(config),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    started = time.monotonic()
    trainer.fit(
        module,
        train_loader(train_set, batch_size=config.batch_size, seed=config.seed),
        eval_loader(val_set),
        ckpt_path=out / CHECKPOINT_NAME if resume else None,
        weights_only=False,
    )
    train_s = time.monotonic() - started
    return _finish(out, config, data, module, preprocessing, pixels, train_s)


def _claim(out: Path, config: TrainConfig, data: PreparedData, *, resume: bool, overwrite: bool) -> None:
    """Make the run folder ours, or say why that cannot be."""
    record = {
        "config": config.to_dict(),
        "data": str(data.directory.resolve()),
        "manifest": data.manifest_sha256,
    }
    if resume:
        if (out / META_NAME).is_file():
            raise UsageError(f"{out}: this run is finished; nothing to resume")
        if not (out / CHECKPOINT_NAME).is_file():
            raise UsageError(f"{out}: no {CHECKPOINT_NAME} to resume from; train without --resume")
        if read_json(out / CONFIG_NAME) != record:
            raise ArtefactError(
                f"{out}: was started with other settings or data, see {CONFIG_NAME};"
                " resume with the same, or start anew with --overwrite"
            )
        return
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        if not overwrite:
            raise UsageError(
                f"{out}: exists already; go on with --resume, replace it with --overwrite, or rename"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / CONFIG_NAME, record)


def _finish(
    out: Path,
    config: TrainConfig,
    data: PreparedData,
    module: Classifier,
    preprocessing,
    pixels,
    train_s: float,
) -> dict:
    """Write weights, pictures and, last, `meta.json`."""
    model = module.model.eval()
    with atomic_file(out / WEIGHTS_NAME) as temporary:
        safetensors.torch.save_file(
            {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temporary
        )
    epochs = _epochs(out / "metrics.csv")
    plot_curves(out / "curves.png", epochs)
    split = "test" if any(row.split == "test" for row in data.rows) else "val"
    dataset = SplitPixels(data, pixels, split)
    probabilities = predict_probabilities(module, dataset)
    metrics = classification_metrics(probabilities, dataset.targets.numpy(), data.labels)
    matrix = confusion_matrix(probabilities, dataset.targets.numpy(), len(data.labels))
    plot_confusion(out / "confusion.png", matrix, data.labels, f"{config.model_name}, {split} split")
    meta = {
        "fruitstand_version": __version__,
        "config": config.to_dict(),
        "preprocessing": preprocessing.to_dict(),
        "labels": data.labels,
        "labels_sha256": labels_sha256(data.labels),
        "weights_sha256": sha256_file(out / WEIGHTS_NAME),
        "data": {
            "directory": str(data.directory.resolve()),
            "source": data.source,
            "manifest_sha256": data.manifest_sha256,
        },
        "git_commit": git_commit(Path(__file__).parent),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "lightning": lightning.__version__,
        },
        "train_s": round(train_s, 1),
        "epochs": epochs,
        "metrics": {split: metrics},
    }
    write_json(out / META_NAME, meta)
    return meta


def _epochs(metrics_csv: Path) -> list[dict[str, float]]:
    """The logger's rows, training and validation joined by epoch."""
    import csv

    joined: dict[int, dict[str, float]] = {}
    with metrics_csv.open(newline="") as file:
        for row in csv.DictReader(file):
            values = {key: float(value) for key, value in row.items() if value and key != "step"}
            joined.setdefault(int(values.pop("epoch")), {}).update(values)
    return [{"epoch": epoch, **values} for epoch, values in sorted(joined.items())]


def _quiet_lightning() -> None:
    """What Lightning says of itself is no part of our log."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # One process decodes nothing and augments in a few tensor operations: workers would only copy.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    # Resuming writes into the run's own folder on purpose.
    warnings.filterwarnings("ignore", message=".*(Checkpoint|Experiment logs) directory .* exists")
    warnings.filterwarnings("ignore", message=".*already exists; appending")


class _Progress(Callback):
    """A bar a step, a line an epoch, both on stderr."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(console=self._console, disable=not self._console.is_terminal, transient=True)

    def on_train_epoch_start(self, trainer, module) -> None:
        epoch = trainer.current_epoch
        self._started = time.monotonic()
        self._bar.start()
        self._task = self._bar.add_task(
            f"epoch {epoch + 1}/{self._config.epochs}, {self._config.train_size(epoch)} px",
            total=trainer.num_training_batches,
        )

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self._bar.advance(self._task)

    def on_train_epoch_end(self, trainer, module) -> None:
        self._bar.remove_task(self._task)
        self._bar.stop()
        epoch, metrics = trainer.current_epoch, trainer.callback_metrics
        self._console.print(
            f"epoch {epoch + 1}/{self._config.epochs} at {self._config.train_size(epoch)} px:"
            f" train_loss {metrics['train_loss']:.4f}, val_loss {metrics['val_loss']:.4f},"
            f" val_top1 {metrics['val_top1']:.4f}, {time.monotonic() - self._started:.0f} s"
        )

    def on_exception(self, trainer, module, exception) -> None:
        self._bar.stop()
