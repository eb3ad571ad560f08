"""Paint fruit-like JPEGs in the Fruits-360 layout, for machines without the data set.

Each class is a textured ellipsoid that turns on a shaft in front of white, as the real fruits do. The images
are for trying the pipeline; accuracies on them mean nothing. All results made from them carry the name
"generated".
"""

import colorsys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fruitstand.errors import UsageError
from fruitstand.progress import track

SIZE = 100
FILMS = ("", "r")
_COLOURS = ("red", "orange", "lime", "green", "teal", "blue", "violet", "magenta")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fruit:
    """The appearance of one class."""

    name: str
    hue: float
    """Hue of the skin, 0 to 1."""
    second_hue: float
    """Hue of the patches, 0 to 1."""
    saturation: float
    value: float
    half_width: float
    """Pixels."""
    half_height: float
    """Pixels."""
    roundness: float
    """Exponent of the outline: 2 is an ellipse, more is squarer, less is more pointed."""
    waves: tuple[tuple[int, int, float], ...]
    """Texture waves: periods around the equator, periods from pole to pole, phase."""
    threshold: float
    """Where the texture is above this, the skin has the second hue."""
    stem: bool


def paint_dataset(directory: Path, *, num_classes: int, images_per_class: int, seed: int) -> Path:
    """Write a Fruits-360 tree of painted images and return its root.

    Args:
        directory: an existing folder; the tree is written to its `generated/`.
        num_classes: at least 2.
        images_per_class: at least 8; every second frame goes to Test, as in Fruits-360.
        seed: the same seed gives the same bytes.

    Raises:
        UsageError: too few classes or images.
    """
    if num_classes < 2:
        raise UsageError(f"--num-classes: got {num_classes}, allowed 2 or more")
    if images_per_class < 8:
        raise UsageError(f"--images-per-class: got {images_per_class}, allowed 8 or more")
    root = directory / "generated"
    tasks = [(root, index, images_per_class, seed) for index in range(num_classes)]
    with ProcessPoolExecutor() as pool:
        for _ in track(pool.map(_paint_class, tasks), total=num_classes, description="paint"):
            pass
    return root


def _paint_class(task: tuple[Path, int, int, int]) -> None:
    root, index, num_images, seed = task
    fruit = invent_fruit(index, seed)
    for folder in ("Training", "Test"):
        (root / folder / fruit.name).mkdir(parents=True)
    for film, frame, number in _frames(num_images):
        folder = "Test" if number % 2 else "Training"
        prefix = f"{film}_" if film else ""
        turn = frame / (num_images / len(FILMS))
        image = paint(fruit, turn=turn, tilt=0.9 if film else 0.0, seed=(seed, index, number))
        path = root / folder / fruit.name / f"{prefix}{frame}_{SIZE}.jpg"
        Image.fromarray(image).save(path, quality=90)


def _frames(num_images: int) -> Iterator[tuple[str, int, int]]:
    for number in range(num_images):
        yield FILMS[number * len(FILMS) // num_images], number % -(-num_images // len(FILMS)), number


def invent_fruit(index: int, seed: int) -> Fruit:
    """Draw the appearance of class number `index` from the seed."""
    rng = np.random.default_rng((seed, index))
    hue = (index * 0.382 + rng.uniform(-0.02, 0.02)) % 1.0  # golden ratio: consecutive hues are far apart
    colour = _COLOURS[round(hue * len(_COLOURS)) % len(_COLOURS)]
    half_height, half_width = rng.uniform(26, 46), rng.uniform(26, 46)
    waves = tuple(
        (int(rng.integers(1, 6)), int(rng.integers(1, 6)), float(rng.uniform(0, 6.28))) for _ in range(3)
    )
    return Fruit(
        name=f"Generated {index + 1:03d} {colour}",
        hue=hue,
        second_hue=(hue + rng.uniform(0.08, 0.3)) % 1.0,
        saturation=rng.uniform(0.55, 0.95),
        value=rng.uniform(0.6, 0.95),
        half_width=half_width,
        half_height=half_height,
        roundness=rng.uniform(1.7, 2.8),
        waves=waves,
        threshold=rng.uniform(0.2, 1.2),
        stem=bool(rng.integers(2)),
    )


def paint(fruit: Fruit, *, turn: float, tilt: float, seed: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Paint one frame of a fruit's film.

    Args:
        fruit: the class.
        turn: rotation about the shaft, 0 to 1.
        tilt: angle of the fruit on the shaft, radians in the image plane.
        seed: seed of this frame's light and sensor noise.

    Returns:
        (100, 100, 3) uint8, RGB on white.
    """
    rng = np.random.default_rng(seed)
    axis = (np.arange(SIZE) - (SIZE - 1) / 2).astype(np.float64)
    x, y = np.meshgrid(axis, axis)
    wobble = tilt + 0.08 * np.sin(2 * np.pi * turn)
    u = (x * np.cos(wobble) + y * np.sin(wobble)) / fruit.half_width
    v = (y * np.cos(wobble) - x * np.sin(wobble)) / fruit.half_height
    outline = np.abs(u) ** fruit.roundness + np.abs(v) ** fruit.roundness
    inside = outline < 1
    depth = np.sqrt(np.clip(1 - outline, 0, 1))
    longitude = np.arctan2(u, depth + 1e-6) + 2 * np.pi * turn
    latitude = np.arcsin(np.clip(v, -1, 1))
    texture = sum(np.sin(a * longitude + p) * np.cos(b * latitude + 2 * p) for a, b, p in fruit.waves)
    first = np.array(colorsys.hsv_to_rgb(fruit.hue, fruit.saturation, fruit.value))
    second = np.array(colorsys.hsv_to_rgb(fruit.second_hue, fruit.saturation, fruit.value * 0.9))
    blend = 1 / (1 + np.exp(-6 * (texture - fruit.threshold)))
    skin = first + blend[..., None] * (second - first)
    light = rng.uniform(0.88, 1.0) * (0.35 + 0.65 * np.clip(0.4 * -u + 0.5 * -v + 0.8 * depth, 0, 1))
    image = np.where(inside[..., None], skin * light[..., None], 1.0)
    if fruit.stem:
        image[(np.abs(u) < 0.06) & (v < -0.8) & (v > -1.15)] = (0.35, 0.25, 0.1)
    noise = rng.normal(0, 0.012, image.shape) * inside[..., None]
    return np.clip((image + noise) * 255, 0, 255).round().astype(np.uint8)
