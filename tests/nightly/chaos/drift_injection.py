"""Drift on purpose: images changed in known ways, to measure what is found."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from fruitstand.images.synthetic import encode

BACKGROUND_FROM = 235
"""A pixel is background when its three values reach it."""


def darker(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """40 % less brightness."""
    return image.point(lambda value: round(0.6 * value))


def blurred(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """A Gaussian of 1.5 pixels in 100."""
    return image.filter(ImageFilter.GaussianBlur(image.width * 1.5 / 100))


def new_background(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """White replaced by a colour with a gradient and noise."""
    pixels = np.asarray(image).astype(np.float32)
    height, width, _ = pixels.shape
    colour = draw.uniform(30, 200, 3)
    ramp = np.linspace(0.8, 1.2, width)[None, :, None]
    picture = colour * ramp + draw.normal(0, 8, (height, width, 3))
    white = (pixels >= BACKGROUND_FROM).all(axis=2, keepdims=True)
    return Image.fromarray(np.where(white, picture, pixels).clip(0, 255).astype(np.uint8))


CHANGES: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "brightness_minus_40": darker,
    "blur": blurred,
    "new_background": new_background,
}


def write_windows(folder: Path, *, reference: Sequence[Path], clean: Sequence[Path], unseen: Sequence[Path],
                  seed: int = 0) -> list[str]:  # fmt: skip
    """Folders of images to be recorded: the three as they are, and the clean ones in every change.

    Args:
        folder: an empty one; gets a folder for each name.
        reference: what the thresholds are made of.
        clean: as the reference, but others.
        unseen: of classes that the model does not know.
        seed: of the backgrounds.

    Returns:
        The names: reference, clean, unseen and those of `CHANGES`.
    """
    for name, paths in (("reference", reference), ("clean", clean), ("unseen", unseen)):
        (folder / name).mkdir()
        for number, path in enumerate(paths):
            (folder / name / f"{number}{path.suffix}").symlink_to(path.resolve())
    draw = np.random.default_rng(seed)
    for name, change in CHANGES.items():
        (folder / name).mkdir()
        for number, path in enumerate(clean):
            with Image.open(path) as opened:
                changed = encode(change(opened.convert("RGB"), draw), "PNG")
            (folder / name / f"{number}.png").write_bytes(changed)
    return ["reference", "clean", "unseen", *CHANGES]
