"""Presets of `TrainConfig`: what is known to work, by the kind of split it is judged on."""

from pathlib import Path
from typing import Any

from fruitstand.manifest import read_prepared
from training.fit.config import TrainConfig, with_settings

RECIPES = ("auto", "classic", "object")
NOT_A_RESNET: dict[str, Any] = {"opt": "adamw", "lr": 1e-3, "weight_decay": 0.05}
"""Transformers, ConvNeXt and mobile networks are trained with AdamW, as their authors did."""


def classic(**values: Any) -> TrainConfig:
    """For a test split of the same films: little augmentation, as the films show every side already."""
    return TrainConfig(recipe="classic", **values)


def object_disjoint(**values: Any) -> TrainConfig:
    """For fruits that were never seen: all symmetries of the square, and light, but nothing that blurs.

    Source:
        docs/DECISIONS.md: rotation and scale for all images, or strong colour changes, did not help on
        varieties that were held out.
    """
    settings: dict[str, Any] = {
        "recipe": "object",
        "epochs": 26,
        "small_share": 0.88,
        "warmup_share": 0.1,
        "sampling": "balanced",
        "rotation_deg": 0.0,
        "min_scale": 1.0,
        "max_scale": 1.0,
        "shift": 0.06,
        "hflip": 0.5,
        "vflip": 0.5,
        "quarter_turn": 0.5,
        "gamma": 0.4,
        "light": 0.0,
        "color": 0.1,
        "gray_prob": 0.1,
        "ema_decay": 0.99,
    }
    return TrainConfig(**{**settings, **values})


def resolve_config(
    recipe: str, data_directory: Path, settings: list[str], given: dict[str, Any]
) -> TrainConfig:
    """The settings of a run: the preset, over it `--set`, over it the flags that have a name of their own.

    Args:
        recipe: one of `RECIPES`; auto takes object where whole varieties are held out, else classic.
        data_directory: a prepared folder.
        settings: such as "lr=0.1".
        given: fields and values.

    Raises:
        ValueError: no such recipe or field, or a value outside what is allowed.
        DataError: the prepared folder is not usable.
    """
    if recipe not in RECIPES:
        raise ValueError(f"--recipe: got {recipe!r}, allowed {', '.join(RECIPES)}")
    if not given.get("model_name", "resnet").startswith("resnet"):
        given = {**NOT_A_RESNET, **given}
    # What is wrong with the values themselves is said before the data are read.
    with_settings(TrainConfig(**given), settings)
    if recipe == "auto":
        recipe = "object" if read_prepared(data_directory).split_kind == "object" else "classic"
    preset = {"classic": classic, "object": object_disjoint}[recipe](**given)
    return with_settings(preset, settings)
