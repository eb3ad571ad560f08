"""Create a timm model, load weights from a file or another run, and wrap it to take raw pixels."""

import difflib
import logging
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import timm
import torch

from fruitstand.contract import Preprocessing
from fruitstand.errors import ArtefactError, TrainingError, UsageError
from fruitstand.model.network import create_network, mean_and_std, normalise, read_weights
from fruitstand.runs import Run

HUB = "hf-hub:"
log = logging.getLogger("fruitstand.train")


def create_model(
    model_name: str, *, num_classes: int, input_size: int, hub: str = "", **arguments: Any
) -> torch.nn.Module:
    """Create a timm image classifier with a fresh head.

    Args:
        model_name: timm's name, such as resnet18.
        num_classes: outputs.
        input_size: height and width in pixels.
        hub: where the weights below the head come from: "timm" for timm's own, "hf-hub:OWNER/NAME" for
            others, empty for random ones.
        **arguments: passed on to timm, such as drop_rate; 0 keeps the model's default.

    Raises:
        UsageError: timm has no such model, or it does not classify images of that size.
        TrainingError: the weights cannot be downloaded.
    """
    if not timm.is_model(model_name):
        near = difflib.get_close_matches(model_name, timm.list_models(), n=6, cutoff=0.5)
        raise UsageError(
            f"model {model_name!r}: timm has no such model; choose one such as"
            f" {', '.join(near or ['resnet18', 'convnext_atto', 'efficientnet_b0'])}"
        )
    arguments = {name: value for name, value in arguments.items() if value}
    if hub.startswith(HUB):
        arguments["pretrained_cfg_overlay"] = {"hf_hub_id": hub.removeprefix(HUB)}
    try:
        size = (input_size, input_size)
        model = create_network(
            model_name, num_classes=num_classes, input_size=size, pretrained=bool(hub), **arguments
        )
    except Exception as exc:  # the hub's client raises OSError and HTTP errors of several libraries
        if hub:
            raise TrainingError(
                f"weights {hub}: cannot download those of {model_name} ({type(exc).__name__});"
                " check the network, set HF_HOME to a filled cache, or train without"
            ) from exc
        what = ", ".join(arguments) or f"{input_size} x {input_size} pixels"
        raise UsageError(f"model {model_name}: cannot be created with {what} ({_first_line(exc)})") from exc
    _check_answers(model, model_name, num_classes, input_size)
    return model


def _check_answers(model: torch.nn.Module, model_name: str, num_classes: int, input_size: int) -> None:
    """Check that the model returns one logit per class for an image of that size."""
    try:
        answers = answer_black(model, input_size)
    except Exception as exc:  # each model family raises errors of its own
        _, _, own = timm.data.resolve_model_data_config(model)["input_size"]
        raise UsageError(
            f"model {model_name}: does not take images of {input_size} x {input_size} pixels"
            f" ({_first_line(exc)}); it was made for {own}: --set input_size={own}"
        ) from exc
    if not isinstance(answers, torch.Tensor) or answers.shape != (1, num_classes):
        raise UsageError(f"model {model_name}: not an image classifier; choose another timm model")
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1,))[0]
    if input_size % patch:
        fits = input_size // patch * patch
        log.warning(
            "%s: patches of %d pixels cover only %d of %d pixels; --set input_size=%d or %d uses all of them",
            *(model_name, patch, fits, input_size, fits, fits + patch),
        )


def answer_black(model: torch.nn.Module, size: int) -> torch.Tensor:
    """Run the model on one black image of `size` x `size` pixels and return its logits."""
    was_training = model.training
    with torch.inference_mode():
        answers: torch.Tensor = model.eval()(torch.zeros(1, 3, size, size))
    model.train(was_training)
    return answers


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]


def resolve_preprocessing(
    model: torch.nn.Module, input_size: int, preprocessing: str = "whole"
) -> Preprocessing:
    """Resolve the preprocessing contract of a model.

    Args:
        model: a timm model.
        input_size: height and width, pixels.
        preprocessing: `timm` uses interpolation and crop of the model's data config; `whole` uses the
            contract's defaults, which keep all of a square image. Both use the model's mean and std.

    Raises:
        UsageError: serving does not support the model's interpolation or crop.
    """
    config = timm.data.resolve_model_data_config(model)
    keys = ("interpolation", "crop_pct", "crop_mode") if preprocessing == "timm" else ()
    try:
        return Preprocessing(
            input_size=(input_size, input_size),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            **{key: config[key] for key in keys},
        )
    except ValueError as exc:
        raise UsageError(f"preprocessing=timm: the model's {exc}; use preprocessing=whole") from exc


def load_from_run(model: torch.nn.Module, source: Run, labels: list[str]) -> int:
    """Load another run's weights; a class of the same name keeps its row of the head.

    Returns:
        How many classes kept their row of the head; the others start with fresh weights.
    """
    state = read_weights(source.weights)
    fresh = model.state_dict()
    theirs = {label: index for index, label in enumerate(source.labels)}
    kept = [(index, theirs[label]) for index, label in enumerate(labels) if label in theirs]
    for name in _head(model):
        rows = fresh[name].clone()
        for ours, their in kept:
            rows[ours] = state[name][their]
        state[name] = rows
    _fill(model, state, str(source.directory))
    return len(kept)


def load_from_file(model: torch.nn.Module, path: Path) -> bool:
    """Load weights from a safetensors file or a torch checkpoint, without executing code from it.

    Returns:
        Whether the head was loaded too; a head of another size keeps its fresh weights.

    Raises:
        ArtefactError: the file cannot be read, or holds the weights of another model.
    """
    try:
        state = timm.models.load_state_dict(str(path), weights_only=True)
        state = {name: one for name, one in state.items() if isinstance(one, torch.Tensor)}
    except (OSError, RuntimeError, ValueError, EOFError, AttributeError, pickle.UnpicklingError) as exc:
        if "weights_only=True" in str(exc):
            raise ArtefactError(
                f"{path}: holds more than tensors; save the model's state_dict alone"
            ) from exc
        raise ArtefactError(f"{path}: no readable weights ({_first_line(exc)})") from exc
    except (zipfile.BadZipFile, safetensors.SafetensorError) as exc:
        raise ArtefactError(f"{path}: damaged ({_first_line(exc)})") from exc
    shared = next(iter(state), "").partition(".")[0] + "."  # a common prefix, such as Lightning's "model."
    if all(name.startswith(shared) for name in state):
        state = {name.removeprefix(shared): one for name, one in state.items()}
    fresh, head = model.state_dict(), _head(model)
    has_head = all(name in state and state[name].shape == fresh[name].shape for name in head)
    if not has_head:
        state |= {name: fresh[name] for name in head}
    _fill(model, state, str(path))
    if not has_head:
        log.warning("%s: its head has another number of classes; the new head starts fresh", path)
    return has_head


def _head(model: torch.nn.Module) -> list[str]:
    """Names of the tensors of the model's head."""
    classifiers = model.get_classifier()
    classifiers = classifiers if isinstance(classifiers, tuple) else (classifiers,)
    return [
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if any(module is one for one in classifiers)
        for parameter, _ in module.named_parameters()
    ]


def _fill(model: torch.nn.Module, state: dict[str, torch.Tensor], what: str) -> None:
    """Load weights, converted to the input size by timm's filter function for the model family.

    Raises:
        ArtefactError: the weights belong to another model.
    """
    fit = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if fit is not None:
        state = fit(state, model)
    ours = model.state_dict()
    misfits = [name for name, one in ours.items() if name not in state or state[name].shape != one.shape]
    if misfits:
        raise ArtefactError(
            f"{what}: not the weights of this model: {len(misfits)} of {len(ours)} tensors are missing or"
            f" have another shape, such as {misfits[0]}; give the --model they were trained with"
        )
    model.load_state_dict(state, strict=False)


class Classifier(torch.nn.Module):
    """A timm model that takes raw pixels and normalises them by mean and std."""

    def __init__(self, model: torch.nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        # RepVGG, MobileOne and others train with branches that are folded later: the backward pass of
        # PyTorch 2.15 on a CPU ends in a segmentation fault with their tensors in channels_last.
        has_branches = any(hasattr(module, "reparameterize") for module in model.modules())
        self._memory_format = torch.contiguous_format if has_branches else torch.channels_last
        self.model = model.to(memory_format=self._memory_format)
        for name, values in zip(("mean", "std"), mean_and_std(preprocessing), strict=True):
            self.register_buffer(name, values, persistent=False)

    def normalize(self, batch_nchw_f32: torch.Tensor) -> torch.Tensor:
        """The model's input for a batch (N, 3, S, S) float32, 0 to 255."""
        batch = normalise(batch_nchw_f32, self.mean, self.std)
        return batch.contiguous(memory_format=self._memory_format)

    def forward(self, batch_nchw_f32: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes) of a batch (N, 3, S, S) float32, 0 to 255."""
        return self.model(self.normalize(batch_nchw_f32))
