"""How often drift is found: real images changed in known ways, answered by a served model.

    python -m benchmarks.drift --source ../shared/fruits-360_dataset [-- --model resnet18 --epochs 8]

Every tenth class is left out, a model is trained on the others and served: what was left out is what it has
never seen. Every other test image is the reference, the rest the clean windows; neither was trained on. The
rest is `fruitstand drift record` and `fruitstand drift power`. What follows `--` goes to `fruitstand train`;
data and model lie in `runs/drift/`: what is there is used again, and a training that was cut off goes on.
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
from fruitstand.errors import DataError, FruitstandError, UsageError
from fruitstand.runs import read_run
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


LEFT_OUT = slice(4, None, 10)
"""Of the classes by name: apples, a banana, a cherry, a lemon, a raspberry and tomatoes."""
CHANGES: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "brightness_minus_40": darker,
    "blur": blurred,
    "new_background": new_background,
}


def drift(
    source: Annotated[Path, typer.Option(help="A Fruits-360 folder with Training and Test.")],
    extra: Annotated[list[str] | None, typer.Argument(help="After --: flags for training.")] = None,
    work: Annotated[Path, typer.Option(help="Folder for data, run and repository.")] = Path("runs/drift"),
    max_images: Annotated[int, typer.Option(help="Of each kind.")] = 1700,
    out: Annotated[Path | None, typer.Option(help="Result file.")] = None,
) -> None:
    """Record every kind and measure the power; exit 1 when an objective is missed."""
    known, unseen = split_classes(source, work)
    repository = make_model(known, work, extra or [])
    with TemporaryDirectory(prefix="fruitstand-drift-") as name:
        scratch = Path(name)
        images = sorted((known / "Test").glob("*/*.jpg"))
        even, odd = _some(images[::2], max_images), _some(images[1::2], max_images)
        _link(even, scratch / "reference")
        _link(odd, scratch / "clean")
        _link(_some(unseen, max_images), scratch / "unseen")
        draw = np.random.default_rng(0)
        for kind, change in CHANGES.items():
            folder = scratch / kind
            folder.mkdir()
            for number, path in enumerate(odd):
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
    meta = read_run(work / "run").meta
    report = {
        **provenance(),
        "settings": {"train": meta["config"], "left_out": sorted({path.parent.name for path in unseen})},
        "objectives": {"min_power": MIN_POWER, "max_false_alarms": MAX_FALSE_ALARMS},
        "samples": result,
        "summary": {"num_classes": len(meta["labels"]), "share_found": found},
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


def make_model(known: Path, work: Path, extra: list[str]) -> Path:
    """Prepare, train and publish, as far as that is not done; the model repository."""
    data, run, repository = (work / name for name in ("data", "run", "model_repository"))
    if not (data / "manifest.parquet").is_file():
        step("prepare", "data", "prepare", "--source", known, "--out", data, "--validation", "frame")
    if not (run / "meta.json").is_file():
        anew = ("--data", data, "--overwrite", *extra)
        step("train", "train", "--out", run, *(["--resume"] if (run / "last.ckpt").is_file() else anew))
    if not (repository / "fruit_resnet" / "1").is_dir():
        step("export", "export", "--run", run, "--repository", repository, "--variants", "fp32,int8")
    return repository


def split_classes(source: Path, work: Path) -> tuple[Path, list[Path]]:
    """Link all classes but every tenth into a folder of the same layout.

    Args:
        source: a Fruits-360 folder, or the one around it.
        work: the new folder is made in it.

    Returns:
        The new folder, and the test images of the classes that are not in it.

    Raises:
        UsageError: no such layout.
    """
    found = sorted(source.glob("**/Test"))
    if not found:
        raise UsageError(f"{source}: no folder Test in it; give a Fruits-360 folder")
    root, known = found[0].parent, work / "source"
    names = sorted(path.name for path in (root / "Test").iterdir())
    left_out = names[LEFT_OUT]
    for part in ("Training", "Test"):
        (known / part).mkdir(parents=True, exist_ok=True)
        for name in set(names) - set(left_out):
            link = known / part / name
            if not link.is_symlink():
                link.symlink_to((root / part / name).resolve())
    return known, [path for name in left_out for path in sorted((root / "Test" / name).glob("*.jpg"))]


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
