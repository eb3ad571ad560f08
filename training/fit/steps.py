"""One training update, from a batch of pixels to new weights.

Its random numbers depend only on seed, step and rank.
"""

import difflib
import random

import numpy as np
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler

from fruitstand.errors import UsageError
from training.fit.augmentation import augment, to_size
from training.fit.config import TrainConfig
from training.fit.model import Classifier


def seed_step(seed: int, step: int, rank: int) -> torch.Generator:
    """Seed every random generator for one update, so that checkpoints need no generator state.

    Returns:
        The CPU generator for `training.fit.augmentation`; timm and the model use the global ones.
    """
    mixed = int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
    return torch.Generator().manual_seed(mixed)


def create_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Create timm's optimiser `config.opt`; biases and norm weights do not decay.

    Raises:
        UsageError: timm has no such optimiser.
    """
    if config.opt not in list_optimizers():
        near = difflib.get_close_matches(config.opt, list_optimizers(), n=4, cutoff=0.4)
        raise UsageError(
            f"opt: got {config.opt!r}, allowed timm's optimisers, such as"
            f" {', '.join(near or ['sgd', 'adamw'])}"
        )
    return create_optimizer_v2(
        model, opt=config.opt, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )


def create_schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, updates_per_epoch: int
) -> Scheduler:
    """Create timm's schedule `config.sched` after a linear warm-up; lr depends only on the step."""
    warmup_epochs = config.warmup_share * config.epochs
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=config.sched,
        num_epochs=config.epochs - warmup_epochs,
        warmup_epochs=warmup_epochs,
        warmup_prefix=True,
        warmup_lr=config.min_lr,
        min_lr=config.min_lr,
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    return schedule


class Step:
    """Computes one update."""

    def __init__(
        self,
        fabric: Fabric,
        classifier: Classifier,
        wrapped: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
    ) -> None:
        self._fabric, self._classifier, self._wrapped = fabric, classifier, wrapped
        self._optimizer, self._config = optimizer, config
        self._erase = None
        if config.random_erasing:
            self._erase = RandomErasing(config.random_erasing, mode="pixel", device=fabric.device)
        self._mixup = None
        if config.mixup or config.cutmix:
            self._mixup = Mixup(
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                prob=config.mix_prob,
                label_smoothing=config.label_smoothing,
                num_classes=classifier.model.num_classes,
            )

    def pictures(self, pixels_nhwc_u8: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
        """Augment a batch: (N, 3, size, size), before normalisation, erasing and mixing."""
        return augment(to_size(pixels_nhwc_u8, size), self._config, generator)

    def __call__(
        self, pixels_nhwc_u8: torch.Tensor, targets: torch.Tensor, *, size: int, step: int
    ) -> torch.Tensor:
        """Update the weights.

        Args:
            pixels_nhwc_u8: (N, H, W, C) uint8, this process's share of the batch.
            targets: (N,) int64.
            size: side of this epoch's training images, pixels.
            step: number of this update, from 0.

        Returns:
            The mean loss over this process's images, a scalar tensor on its device.
        """
        generator = seed_step(self._config.seed, step, self._fabric.global_rank)
        batch = self._classifier.normalize(self.pictures(pixels_nhwc_u8, size, generator))
        if self._erase is not None:
            batch = self._erase(batch)
        if self._mixup is not None:
            batch, targets = self._mixup(batch, targets)
        pieces = self._config.grad_accum_steps
        total = torch.zeros((), device=batch.device)
        parts = list(zip(batch.chunk(pieces), targets.chunk(pieces), strict=True))
        for number, (part, wanted) in enumerate(parts):
            # Exchange gradients between processes once, after the last piece.
            with self._fabric.no_backward_sync(self._wrapped, enabled=number < len(parts) - 1):
                loss = self._loss(self._wrapped(part), wanted) * (len(part) / len(batch))
                self._fabric.backward(loss)
            total += loss.detach()
        if self._config.clip_grad:
            self._fabric.clip_gradients(
                self._wrapped, self._optimizer, max_norm=self._config.clip_grad, error_if_nonfinite=False
            )
        self._optimizer.step()
        self._optimizer.zero_grad()
        return total

    def _loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        # Mixup has already smoothed its targets.
        smoothing = 0.0 if self._mixup is not None else self._config.label_smoothing
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)
