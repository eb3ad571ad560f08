"""How often drift is found: real images changed in known ways, answered by a served model.

    python -m benchmarks.drift --repository REPOSITORY --images FOLDER --unseen FOLDER

Every other image is the reference, the rest the clean windows; the test images of both were not trained on.
`fruitstand drift record` and `fruitstand drift power` do the rest. The result goes into benchmarks/results/.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageFilter

from benchmarks.provenance import provenance
from benchmarks.stages import served, step
from fruitstand.artefacts import write_json
from fruitstand.errors import DataError, FruitstandError
from fruitstand.sample_images import encode

MIN_POWER, MAX_FALSE_ALARMS = 0.95, 0.05
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


def drift(
    repository: Annotated[Path, typer.Option(help="Model repository to serve.")],
    images: Annotated[Path, typer.Option(help="Images of the model's classes, none of training.")],
    unseen: Annotated[Path, typer.Option(help="Folder with images of classes that it does not know.")],
    max_images: Annotated[int, typer.Option(help="Of each kind.")] = 3400,
    out: Annotated[Path | None, typer.Option(help="Result file.")] = None,
) -> None:
    """Record every kind and measure the power; exit 1 when an objective is missed."""
    with TemporaryDirectory(prefix="fruitstand-drift-") as name:
        scratch = Path(name)
        even, odd = _halves(images, max_images)
        _link(even, scratch / "reference")
        _link(odd, scratch / "clean")
        _link(_some(sorted(unseen.rglob("*.jpg")), 1000), scratch / "unseen")
        draw = np.random.default_rng(0)
        for kind, change in CHANGES.items():
            folder = scratch / kind
            folder.mkdir()
            for number, path in enumerate(_some(odd, 1000)):
                with Image.open(path) as opened:
                    (folder / f"{number}.png").write_bytes(encode(change(opened.convert("RGB"), draw), "PNG"))
        with served(repository, log=scratch / "triton.log") as url:
            for folder in ("reference", "clean", "unseen", *CHANGES):
                arguments = ("--out", scratch / f"{folder}.npz", "--url", url, "--repository", repository)
                step("record", "drift", "record", scratch / folder, *arguments)
        changed = [word for kind in CHANGES for word in ("--drifted", scratch / f"{kind}.npz")]
        files = ("--reference", scratch / "reference.npz", "--clean", scratch / "clean.npz")
        result = step("power", "drift", "power", *files, "--unseen", scratch / "unseen.npz", *changed)
    found = {kind: one["share_found"] for kind, one in result["kinds"].items()}
    report = {
        **provenance(),
        "objectives": {"min_power": MIN_POWER, "max_false_alarms": MAX_FALSE_ALARMS},
        **result,
    }
    if out is not None:
        write_json(out, report)
    for kind, share in found.items():
        print(f"{kind:22} {share:.3f}")
    missed = [kind for kind, share in found.items() if kind != "clean" and share < MIN_POWER]
    if found["clean"] > MAX_FALSE_ALARMS:
        missed.append("clean")
    if missed:
        raise DataError(f"objectives missed: {', '.join(missed)}")


def _halves(folder: Path, max_images: int) -> tuple[list[Path], list[Path]]:
    """Every other image of each class."""
    paths = _some(sorted(folder.rglob("*.jpg")), max_images)
    return paths[::2], paths[1::2]


def _some(paths: list[Path], count: int) -> list[Path]:
    chosen = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return [paths[index] for index in chosen]


def _link(paths: list[Path], folder: Path) -> None:
    folder.mkdir()
    for number, path in enumerate(paths):
        (folder / f"{number}{path.suffix}").symlink_to(path.resolve())


def main() -> None:
    """Run it; an error of ours is one line."""
    try:
        typer.run(drift)
    except FruitstandError as exc:
        print(f"drift: error: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)


if __name__ == "__main__":
    main()
