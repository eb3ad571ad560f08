"""Leave classes of Fruits-360 out of the training, for `benchmarks.abstention`.

    python -m benchmarks.left_out --source ../shared/fruits-360_dataset/fruits-360 --out runs/left_out
    fruitstand data prepare --source runs/left_out/known --validation frame --out runs/left_out/data
    fruitstand train --data runs/left_out/data --out runs/known
    fruitstand export --run runs/known --repository runs/left_out/model_repository --explain
    python -m benchmarks.abstention --run runs/known --unseen runs/left_out/report --photos PHOTOGRAPHS

Of the sorted classes, every seventh goes to `report` and another seventh to `choose`: a score is chosen on
the one and reported on the other. The rest is `known`.
"""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from fruitstand.errors import UsageError
from fruitstand.stages import command_line

PARTS = {3: "report", 6: "choose"}
"""By the remainder of a class's position."""
PERIOD = 7


def divide(
    source: Annotated[Path, typer.Option(help="Folder with Training and Test.")],
    out: Annotated[Path, typer.Option(help="Folder to create.")],
    max_images: Annotated[int, typer.Option(min=1, help="Training images of a class, evenly.")] = 125,
) -> None:
    """Copy the images: all of Test, and some of Training for the known classes."""
    if out.exists():
        raise UsageError(f"{out}: exists already; remove it or choose another --out")
    for position, name in enumerate(sorted(path.name for path in (source / "Training").iterdir())):
        part = PARTS.get(position % PERIOD)
        if part is None:
            _copy(source / "Training" / name, out / "known" / "Training" / name, max_images)
            part = "known/Test"
        _copy(source / "Test" / name, out / part / name, sys.maxsize)


def _copy(source: Path, target: Path, max_images: int) -> None:
    target.mkdir(parents=True)
    paths = sorted(source.iterdir())
    for path in paths[:: -(-len(paths) // max_images)]:
        shutil.copyfile(path, target / path.name)


if __name__ == "__main__":
    command_line(divide)
