"""One training run in Lightning, from the first step to `meta.json`."""

import csv
import io
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
from rich.console import Console
from rich.progress import Progress

from fruitstand import __version__
from fruitstand.artefacts import atomic_file, sha256_file, write_bytes, write_json
from fruitstand.checkout import git_commit
from fruitstand.labels import labels_sha256
from fruitstand.manifest import PreparedData
from fruitstand.runs import CHECKPOINT_NAME, META_NAME, WEIGHTS_NAME
from training.config import TrainConfig
from training.evaluate import finish_evaluation
from training.model import Classifier, create_model, resolve_preprocessing
from training.pixels import SplitPixels, eval_loader, pixel_cache, train_loader
from training.plots import plot_curves

METRICS_NAME = "metrics.csv"


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
        logger=False,
        callbacks=[
            _Progress(config, out / METRICS_NAME),
            ModelCheckpoint(out, filename="last", every_n_epochs=1, save_on_train_epoch_end=True),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(
        module,
        train_loader(train_set, batch_size=config.batch_size, seed=config.seed),
        eval_loader(val_set),
        ckpt_path=out / CHECKPOINT_NAME if resume else None,
        weights_only=False,
    )
    return _finish(out, config, data, module, preprocessing)


def _finish(
    out: Path,
    config: TrainConfig,
    data: PreparedData,
    module: Classifier,
    preprocessing,
) -> dict:
    """Write weights, pictures, the evaluation and, last, `meta.json`."""
    model = module.model.eval()
    with atomic_file(out / WEIGHTS_NAME) as temporary:
        safetensors.torch.save_file(
            {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, temporary
        )
    epochs = _read_epochs(out / METRICS_NAME)
    plot_curves(out / "curves.png", epochs)
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
        "train_s": round(sum(epoch["seconds"] for epoch in epochs), 1),
        "epochs": epochs,
    }
    meta = finish_evaluation(out, meta, data)
    write_json(out / META_NAME, meta)
    return meta


def _read_epochs(path: Path) -> list[dict[str, float]]:
    """The rows of `metrics.csv`."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [
            {"epoch": int(row.pop("epoch")), **{key: float(value) for key, value in row.items()}}
            for row in csv.DictReader(file)
        ]


def _quiet_lightning() -> None:
    """What Lightning says of itself is no part of our log."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # One process decodes nothing and augments in a few tensor operations: workers would only copy.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    # Lightning 2.6 on PyTorch 2.15 uses a name that PyTorch retires.
    warnings.filterwarnings("ignore", message=".*treespec.*LeafSpec", category=FutureWarning)
    # Resuming writes into the run's own folder on purpose.
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists")


class _Progress(Callback):
    """A bar a step and a line an epoch on stderr, and a row an epoch in `metrics.csv`."""

    def __init__(self, config: TrainConfig, metrics_csv: Path) -> None:
        self._config, self._metrics_csv = config, metrics_csv
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
        row = {
            "epoch": trainer.current_epoch,
            "size_px": self._config.train_size(trainer.current_epoch),
            **{key: trainer.callback_metrics[key].item() for key in ("train_loss", "val_loss", "val_top1")},
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "seconds": round(time.monotonic() - self._started, 2),
        }
        self._append(row)
        self._console.print(
            f"epoch {row['epoch'] + 1}/{self._config.epochs} at {row['size_px']} px:"
            f" train_loss {row['train_loss']:.4f}, val_loss {row['val_loss']:.4f},"
            f" val_top1 {row['val_top1']:.4f}, {row['seconds']:.0f} s"
        )

    def _append(self, row: dict[str, float]) -> None:
        """Add the epoch; an epoch that a killed run had begun to record is replaced."""
        kept = [one for one in _read_epochs(self._metrics_csv) if one["epoch"] < row["epoch"]]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, row])
        write_bytes(self._metrics_csv, text.getvalue().encode())

    def on_exception(self, trainer, module, exception) -> None:
        self._bar.stop()
