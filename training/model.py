"""The timm ResNet and its Lightning module."""

import lightning
import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torchmetrics.classification import MulticlassAccuracy

from fruitstand.contract import Preprocessing
from fruitstand.errors import TrainingError, UsageError
from training.augment import augment, to_size
from training.config import TrainConfig


def create_model(model_name: str, *, num_classes: int, pretrained: bool = False) -> torch.nn.Module:
    """A timm ResNet with a fresh classifier.

    Args:
        model_name: timm's name, such as resnet18.
        num_classes: outputs.
        pretrained: load timm's ImageNet weights for all but the classifier.

    Raises:
        UsageError: timm knows no such model.
        TrainingError: the pretrained weights cannot be had.
    """
    if not timm.is_model(model_name):
        near = ", ".join(timm.list_models("resnet*")[:8])
        raise UsageError(f"model {model_name!r}: timm knows no such model; choose one of {near}, ...")
    try:
        return timm.create_model(model_name, num_classes=num_classes, pretrained=pretrained)
    except Exception as exc:  # the hub's client raises anything from OSError to its own HTTP errors
        if not pretrained:
            raise
        raise TrainingError(
            f"--pretrained: the ImageNet weights of {model_name} cannot be loaded from the hub"
            f" ({type(exc).__name__}); connect to it, set HF_HOME to a filled cache, or train without"
            " --pretrained"
        ) from exc


def resolve_preprocessing(model: torch.nn.Module, input_size: int) -> Preprocessing:
    """The contract for a model: timm's mean and std, our size, filter and crop."""
    config = timm.data.resolve_model_data_config(model)
    return Preprocessing(
        input_size=(input_size, input_size),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


class Classifier(lightning.LightningModule):
    """Trains a timm model on raw pixels; augmentation and normalisation happen here, on the batch."""

    def __init__(self, model: torch.nn.Module, config: TrainConfig, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)
        self.config = config
        self.register_buffer(
            "mean", 255 * torch.tensor(preprocessing.mean).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer("std", 255 * torch.tensor(preprocessing.std).view(1, 3, 1, 1), persistent=False)
        num_classes = model.num_classes
        self.val_top1 = MulticlassAccuracy(num_classes, average="micro")
        self._generator = torch.Generator()

    def forward(self, batch_nchw_f32: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes) of a batch (N, 3, S, S) float32, 0 to 255."""
        batch = (batch_nchw_f32 - self.mean) / self.std
        return self.model(batch.contiguous(memory_format=torch.channels_last))

    def on_train_epoch_start(self) -> None:
        """Seed the augmentation by epoch, so that a resumed run sees what an uninterrupted one sees."""
        self._generator.manual_seed(self.config.seed * 1_000_003 + self.current_epoch + 500_000)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        """One step on (pixels, targets)."""
        pixels, targets = batch
        small = to_size(pixels, self.config.train_size(self.current_epoch))
        logits = self(augment(small, self._generator))
        loss = F.cross_entropy(logits, targets, label_smoothing=self.config.label_smoothing)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss.item()} at step {self.global_step}; the last good checkpoint stays:"
                " train again with a smaller --lr"
            )
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(targets))
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> None:
        """Loss and accuracy at the size of this epoch's training images."""
        pixels, targets = batch
        logits = self(to_size(pixels, self.config.train_size(self.current_epoch)))
        self.val_top1(logits, targets)
        loss = F.cross_entropy(logits, targets)
        self.log("val_loss", loss, on_epoch=True, batch_size=len(targets))
        self.log("val_top1", self.val_top1, on_epoch=True, batch_size=len(targets))

    def configure_optimizers(self) -> dict:
        """SGD with Nesterov momentum under a one-cycle schedule."""
        optimizer = create_optimizer_v2(
            self.model, opt="sgd", lr=self.config.lr, momentum=0.9, weight_decay=self.config.weight_decay
        )
        # With fewer than 5 steps OneCycleLR divides by zero.
        steps = max(5, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.config.lr, total_steps=steps, pct_start=0.25, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
