"""One training run in Lightning, from the first step to `meta.json`."""

import logging
import platform
import time
import warnings
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
from fruitstand.artefacts import atomic_file, sha256_file, write_json
from fruitstand.checkout import git_commit
from fruitstand.labels import labels_sha256
from fruitstand.manifest import PreparedData
from fruitstand.runs import CHECKPOINT_NAME, META_NAME, WEIGHTS_NAME
from training.config import TrainConfig
from training.metrics import classification_metrics, confusion_matrix
from training.model import Classifier, create_model, resolve_preprocessing
from training.pixels import SplitPixels, eval_loader, pixel_cache, train_loader
from training.plots import plot_confusion, plot_curves
from training.predict import predict_probabilities


def fit(config: TrainConfig, data: PreparedData, out: Path, *, resume: bool) -> dict:
    """Train one model into a run folder that is ours.

    Args:
        config: the settings, precision resolved.
        data: the prepared folder.
        out: the run folder.
        resume: go on from its last checkpoint.

    Returns:
        What `meta.json` holds.

    Raises:
        TrainingError: pretrained weights cannot be had, or the loss is no number any more.
    """
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
    # Lightning 2.6 on PyTorch 2.15 uses a name that PyTorch retires.
    warnings.filterwarnings("ignore", message=".*treespec.*LeafSpec", category=FutureWarning)
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
