"""A timm model with weights of its own, its classes and its preprocessing."""

import difflib
import hashlib
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch

from fruitstand.contract import Preprocessing
from fruitstand.errors import ArtefactError, UsageError
from fruitstand.model.network import create_network, read_weights


def make_timm_model(
    name: str, weights: Path | None, labels: list[str] | None, input_size: tuple[int, int] | None
) -> torch.nn.Module:
    """A timm model with its pretrained weights, head included, or with those of a file.

    Args:
        name: timm's, or hf-hub:OWNER/MODEL.
        weights: a safetensors file; None fetches the pretrained ones.
        labels: the classes of the file.
        input_size: height and width in pixels that the file was trained for; None takes timm's.

    Raises:
        UsageError: timm knows no such model, or a file comes without labels.
        ArtefactError: the weights cannot be fetched, or the file does not hold this model's.
    """
    check_timm_name(name, hub=weights is None)
    if weights is None:
        # It tells of each of its attempts; where all fail, the error below says it once.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        try:
            return timm.create_model(name, pretrained=True)
        except Exception as exc:  # the hub's client raises anything from OSError to its own HTTP errors
            raise ArtefactError(
                f"timm:{name}: its pretrained weights cannot be fetched ({type(exc).__name__}); connect to"
                " the network, set HF_HOME to a filled cache, or give a file with --weights"
            ) from exc
    if labels is None:
        raise UsageError("--weights: a file does not name its classes; give --labels")
    known = timm.get_pretrained_cfg(name)
    size = input_size or preprocessing_values({} if known is None else known.to_dict())["input_size"]
    model = create_network(name, num_classes=len(labels), input_size=size)
    try:
        model.load_state_dict(read_weights(weights))
    except Exception as exc:  # safetensors and torch raise their own kinds for a wrong file
        reason = " ".join(str(exc).split())[:200]
        raise ArtefactError(
            f"{weights}: no safetensors weights of {name} with {len(labels)} classes ({reason})"
        ) from exc
    return model


def check_timm_name(name: str, *, hub: bool = False) -> None:
    """Refuse a name that timm does not know.

    Args:
        name: timm's.
        hub: whether hf-hub:OWNER/MODEL will do.

    Raises:
        UsageError: and names those that are near.
    """
    if not (hub and name.startswith("hf-hub:")) and not timm.is_model(name):
        near = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=4))
        raise UsageError(f"timm knows no model {name!r}" + (f"; near are {near}" if near else ""))


def preprocessing_values(pretrained_cfg: dict[str, Any]) -> dict[str, Any]:
    """Timm's data config, as far as the contract has a field for it."""
    config = timm.data.resolve_data_config(pretrained_cfg=pretrained_cfg)
    known = {field.name for field in fields(Preprocessing)} - {"input_size", "crop"}
    size = {"input_size": tuple(config["input_size"][1:])}
    return {key: value for key, value in config.items() if key in known} | size


def imagenet_labels(model: torch.nn.Module) -> list[str]:
    """ImageNet's classes for a model that has them; two of one name get their synset behind it.

    Raises:
        UsageError: timm does not know the model's classes.
    """
    subset = timm.data.infer_imagenet_subset(model)
    if subset is None:
        raise UsageError(f"--labels: timm has no names for {model.num_classes} classes; give a file")
    info = timm.data.ImageNetInfo(subset)
    names = [info.index_to_description(index) for index in range(info.num_classes())]
    return [
        name if names.count(name) == 1 else f"{name} ({info.index_to_label_name(index)})"
        for index, name in enumerate(names)
    ]


def weights_sha256(model: torch.nn.Module) -> str:
    """Identity of a model's weights, as hex."""
    return hashlib.sha256(safetensors.torch.save(model.state_dict())).hexdigest()
