"""The training loop: epochs, validation and checkpoints.

A run that is killed at any step and resumed ends with bit-identical weights. This needs a complete list of
the run's state, so the loop is written here instead of using Lightning's Trainer. The state is `Progress` and
the tensors of model, moving average and optimiser. Image order, augmentation, dropout and learning rate are
functions of seed, epoch, step and rank and need no state. Lightning Fabric handles processes, precision and
devices.
"""

import hashlib
import math
import pickle
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from timm.utils import ModelEmaV3, distribute_bn
from torch.utils.data import DataLoader

from fruitstand.artefacts import atomic_file
from fruitstand.contract import Preprocessing
from fruitstand.errors import ArtefactError, TrainingError
from fruitstand.model.network import read_weights
from fruitstand.progress import track
from fruitstand.runs import CHECKPOINT_NAME
from training.fit.config import TrainConfig
from training.fit.model import Classifier
from training.fit.pixel_cache import ShuffledBatches
from training.fit.steps import Step, create_optimizer, create_schedule
from training.fit.trackers import METRICS_NAME, print_epoch, write_history

BEST_NAME = "best.safetensors"
GPU_LOSSES = 16
"""Losses read from the GPU at once; each read makes the CPU wait for the GPU."""


@dataclass(slots=True)
class Progress:
    """How far a run has come; saved in each checkpoint."""

    epoch: int = 0
    """Number of finished epochs, which is the index of the current one."""
    batch: int = 0
    """Finished batches of the current epoch."""
    step: int = 0
    """Finished updates in all epochs."""
    loss_sum: float = 0.0
    """Sum of the losses of the current epoch's batches."""
    seconds: float = 0.0
    """Time spent on the current epoch's batches."""
    wait_seconds: float = 0.0
    """Part of `seconds` spent waiting for data."""
    best_top1: float = -1.0
    """Best validation top-1 so far."""
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)
    """One row for each finished epoch."""


class Loop:
    """Trains one model into a run folder."""

    def __init__(
        self,
        fabric: Fabric,
        config: TrainConfig,
        classifier: Classifier,
        preprocessing: Preprocessing,
        batches: ShuffledBatches,
        loader: DataLoader,
        val_loader: DataLoader,
        out: Path,
        on_epoch: Callable[[dict[str, float]], None],
    ) -> None:
        """Prepare model, optimiser and schedule.

        The first process calls `on_epoch` with each finished epoch's row.
        """
        self.fabric, self._config, self._out, self._on_epoch = fabric, config, out, on_epoch
        self._batches, self._loader, self._val_loader = batches, loader, val_loader
        self._classifier = classifier.to(fabric.device)
        self._model = classifier.model
        self._wrapped, self._optimizer = fabric.setup(self._model, create_optimizer(self._model, config))
        self._schedule = create_schedule(self._optimizer.optimizer, config, len(batches))
        self._ema = None
        if config.ema_decay:
            self._ema = ModelEmaV3(self._model, decay=config.ema_decay, use_warmup=True)
        averaged = self._ema.module if self._ema is not None else self._model
        self.evaluated = Classifier(averaged, preprocessing).to(fabric.device)
        """The model that is validated and saved: the moving average if there is one."""
        self.step = Step(fabric, self._classifier, self._wrapped, self._optimizer, config)
        self.progress = Progress()
        self._losses: list[torch.Tensor] = []
        self._saved_at = time.monotonic()

    def run(self, *, resume: bool) -> Progress:
        """Train all epochs; `resume` starts from the last checkpoint.

        Raises:
            TrainingError: a loss or weight became infinite or NaN.
            ArtefactError: the checkpoint cannot be read.
        """
        if resume:
            self._restore(read_checkpoint(self._out / CHECKPOINT_NAME))
        self._schedule.step_update(self.progress.step)
        while self.progress.epoch < self._config.epochs:
            self._train_epoch()
            self._end_epoch()
        if self._config.keep == "best":
            state = read_weights(self._out / BEST_NAME)
            self.evaluated.model.load_state_dict(state)
        return self.progress

    def check_agreement(self) -> list[str]:
        """The sha256 of each process's final weights.

        Raises:
            TrainingError: the processes ended with different weights.
        """
        digest = hashlib.sha256()
        for tensor in self.evaluated.model.state_dict().values():
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        hashes = [digest.hexdigest()] * self.fabric.world_size
        if self.fabric.world_size > 1:
            torch.distributed.all_gather_object(hashes, digest.hexdigest())
        if len(set(hashes)) > 1:
            raise TrainingError(f"the processes ended with different weights: {', '.join(hashes)}")
        return hashes

    def _train_epoch(self) -> None:
        """Train on the remaining batches of the current epoch."""
        config, progress = self._config, self.progress
        size, total = config.train_size(progress.epoch), len(self._batches)
        self._batches.start_at(progress.epoch, progress.batch)
        self._model.train()
        read_each = GPU_LOSSES if self.fabric.device.type == "cuda" else 1
        moment = time.monotonic()
        batches = self._loader
        if self.fabric.is_global_zero:
            what = f"epoch {progress.epoch + 1}/{config.epochs}, {size} px"
            batches = track(batches, total=total, completed=progress.batch, description=what)
        for batch in batches:
            pixels, targets = self.fabric.to_device(batch)
            progress.wait_seconds += time.monotonic() - moment
            self._losses.append(self.step(pixels, targets, size=size, step=progress.step))
            progress.batch += 1
            progress.step += 1
            self._schedule.step_update(progress.step)
            if self._ema is not None:
                self._ema.update(self._model, step=progress.step)
            if len(self._losses) == read_each or progress.batch == total:
                self._read_losses()
            now = time.monotonic()
            progress.seconds += now - moment
            moment = now
            if not self._losses and now - self._saved_at >= config.checkpoint_seconds:
                self._save()
                moment = time.monotonic()

    def _read_losses(self) -> None:
        """Add up the losses, averaged over the processes.

        Raises:
            TrainingError: a loss is infinite or NaN; names its step.
        """
        losses = torch.stack(self._losses).double()
        first = self.progress.step - len(self._losses)
        self._losses.clear()
        if self.fabric.world_size > 1:
            losses = self.fabric.all_reduce(losses, reduce_op="mean")
        for step, loss in enumerate(losses.tolist(), start=first):
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss became {loss} at step {step}; the last good checkpoint is kept."
                    " Train again with a smaller learning rate: --set lr=..."
                )
            self.progress.loss_sum += loss

    def _end_epoch(self) -> None:
        """Validate, record the epoch and write the checkpoint."""
        config, progress = self._config, self.progress
        if self.fabric.world_size > 1:
            # Each process has batch-norm statistics of its own images. Copy those of rank 0 to all. Every
            # process must call these in the same order, or one receives the other model's tensors.
            distribute_bn(self._model, self.fabric.world_size)
            if self._ema is not None:
                distribute_bn(self._ema.module, self.fabric.world_size)
        check_finite(self.evaluated.model.state_dict().values(), step=progress.step)
        started = time.monotonic()
        val_loss, val_top1 = self._validate()
        total = progress.batch
        row = {
            "epoch": progress.epoch,
            "size_px": config.train_size(progress.epoch),
            "train_loss": progress.loss_sum / total,
            "val_loss": val_loss,
            "val_top1": val_top1,
            "lr": self._optimizer.param_groups[0]["lr"],
            "images_per_s": round(total * self._batches.batch_size / progress.seconds, 1),
            "data_wait_pct": round(100 * progress.wait_seconds / progress.seconds, 2),
            "seconds": round(progress.seconds + time.monotonic() - started, 2),
        }
        if val_top1 > progress.best_top1:
            progress.best_top1, progress.best_epoch = val_top1, progress.epoch
            if config.keep == "best" and self.fabric.is_global_zero:
                with atomic_file(self._out / BEST_NAME) as temporary:
                    safetensors.torch.save_file(contiguous_state(self.evaluated.model), temporary)
        progress.history.append(row)
        progress.epoch += 1
        progress.batch, progress.loss_sum, progress.seconds, progress.wait_seconds = 0, 0.0, 0.0, 0.0
        self._save()
        if self.fabric.is_global_zero:
            print_epoch(row, config.epochs)
            write_history(self._out / METRICS_NAME, progress.history)
            self._on_epoch(row)

    @torch.inference_mode()
    def _validate(self) -> tuple[float, float]:
        """Mean validation loss and top-1, at full input size."""
        self.evaluated.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self.fabric.device)
        for pixels, targets in self._val_loader:
            pixels, targets = self.fabric.to_device((pixels, targets))
            with self.fabric.autocast():
                logits = self.evaluated(pixels.permute(0, 3, 1, 2).float()).float()
            sums[0] += F.cross_entropy(logits, targets, reduction="sum")
            sums[1] += (logits.argmax(dim=1) == targets).sum()
            sums[2] += len(targets)
        if self.fabric.world_size > 1:
            sums = self.fabric.all_reduce(sums, reduce_op="sum")
        loss, hits, num_images = sums.tolist()
        return loss / num_images, hits / num_images

    def _save(self) -> None:
        """Write the checkpoint in the first process; the others hold the same state."""
        self._saved_at = time.monotonic()
        if self.fabric.is_global_zero:
            write_checkpoint(self._out / CHECKPOINT_NAME, self._state())
        self._saved_at = time.monotonic()

    def _state(self) -> dict[str, Any]:
        return {
            "progress": asdict(self.progress),
            "model": self._model.state_dict(),
            "ema": self._ema.module.state_dict() if self._ema is not None else None,
            "optimizer": self._optimizer.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """The inverse of `_state`."""
        self.progress = Progress(**state["progress"])
        self._model.load_state_dict(state["model"])
        if self._ema is not None:
            self._ema.module.load_state_dict(state["ema"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        if self.fabric.is_global_zero:
            # A kill between checkpoint and metrics.csv leaves the file one row short.
            write_history(self._out / METRICS_NAME, self.progress.history)


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises:
        TrainingError: a weight is infinite or NaN; an existing checkpoint is kept.
    """
    check_finite(state["model"].values(), step=state["progress"]["step"])
    with atomic_file(path) as temporary:
        torch.save(state, temporary)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without executing code from it.

    Raises:
        ArtefactError: the file is damaged or not a checkpoint.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as exc:
        raise ArtefactError(f"{path}: damaged or of another version; start over with --overwrite") from exc


def check_finite(tensors: Iterable[torch.Tensor], *, step: int) -> None:
    """Check that all weights are finite.

    Raises:
        TrainingError: a weight is infinite or NaN.
    """
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    if not torch.stack([tensor.isfinite().all() for tensor in floats]).all():
        raise TrainingError(
            f"the weights became infinite or NaN at step {step}; the last good checkpoint is kept."
            " Train again with a smaller learning rate: --set lr=..."
        )


def contiguous_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with contiguous tensors, as safetensors requires."""
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
