"""The timm ResNet: made, filled from another run, and wrapped to take raw pixels."""

from typing import Any

import timm
import torch

from fruitstand.contract import Preprocessing
from fruitstand.errors import TrainingError, UsageError
from fruitstand.model.network import create_network, mean_and_std, normalise, read_weights
from fruitstand.runs import Run


def create_model(
    model_name: str, *, num_classes: int, pretrained: bool = False, **arguments: Any
) -> torch.nn.Module:
    """A timm ResNet with a fresh classifier.

    Args:
        model_name: timm's name, such as resnet18.
        num_classes: outputs.
        pretrained: load timm's ImageNet weights for all but the classifier.
        **arguments: passed on to timm, such as drop_rate.

    Raises:
        UsageError: timm knows no such model.
        TrainingError: the pretrained weights cannot be had.
    """
    if not timm.is_model(model_name):
        near = ", ".join(timm.list_models("resnet*")[:8])
        raise UsageError(f"model {model_name!r}: timm knows no such model; choose one of {near}, ...")
    try:
        return create_network(model_name, num_classes=num_classes, pretrained=pretrained, **arguments)
    except Exception as exc:  # the hub's client raises anything from OSError to its own HTTP errors
        if not pretrained:
            raise
        raise TrainingError(
            f"pretrained: the ImageNet weights of {model_name} cannot be loaded from the hub"
            f" ({type(exc).__name__}); connect to it, set HF_HOME to a filled cache, or train without"
            " pretrained"
        ) from exc


def resolve_preprocessing(model: torch.nn.Module, input_size: int) -> Preprocessing:
    """The contract for a model: timm's mean and std, our size, filter and crop."""
    config = timm.data.resolve_model_data_config(model)
    return Preprocessing(
        input_size=(input_size, input_size),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def load_from_run(model: torch.nn.Module, source: Run, labels: list[str]) -> int:
    """Fill a model with another run's weights; the classifier's rows where a label has the same name.

    Args:
        model: the same timm model with one output for each of `labels`.
        source: a finished run.
        labels: the model's classes.

    Returns:
        How many classes kept their row of the classifier; the others start fresh.
    """
    state = read_weights(source.weights)
    classifier = model.get_classifier()
    fresh = model.state_dict()
    theirs = {label: index for index, label in enumerate(source.labels)}
    kept = [(index, theirs[label]) for index, label in enumerate(labels) if label in theirs]
    for name, module in model.named_modules():
        if module is classifier:
            for parameter in ("weight", "bias"):
                rows = fresh[f"{name}.{parameter}"].clone()
                old = state[f"{name}.{parameter}"]
                for ours, their in kept:
                    rows[ours] = old[their]
                state[f"{name}.{parameter}"] = rows
    model.load_state_dict(state)
    return len(kept)


class Classifier(torch.nn.Module):
    """A timm model on raw pixels: mean and std are taken off inside."""

    def __init__(self, model: torch.nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)
        for name, values in zip(("mean", "std"), mean_and_std(preprocessing), strict=True):
            self.register_buffer(name, values, persistent=False)

    def normalize(self, batch_nchw_f32: torch.Tensor) -> torch.Tensor:
        """The model's input for a batch (N, 3, S, S) float32, 0 to 255."""
        batch = normalise(batch_nchw_f32, self.mean, self.std)
        return batch.contiguous(memory_format=torch.channels_last)

    def forward(self, batch_nchw_f32: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes) of a batch (N, 3, S, S) float32, 0 to 255."""
        return self.model(self.normalize(batch_nchw_f32))
