"""Find the images of a Fruits-360 tree, whatever its version calls its folders.

Every release is some nesting around `Training/<class>/*.jpg` and `Test/<class>/*.jpg`; the 3-body set has one
level more, `Training/<fruit>/<variety>/*.jpg`.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from fruitstand.contract import IMAGE_SUFFIXES
from fruitstand.errors import DataError

SPLIT_FOLDERS = {"training": "train", "train": "train", "validation": "val", "val": "val", "test": "test"}

_FILE_NAME = re.compile(r"^(?:(?P<film>r\d*)_)?(?P<frame>\d+)(?:_\d+)?$")


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image file and what its place in the tree says about it."""

    file: Path
    relative: Path
    """Below the root: split folder, class folder (or two), file name."""
    label: str
    object: str
    film: str
    frame: int
    split: str


def find_root(directory: Path) -> Path:
    """The folder that holds the `Training` and `Test` folders, at any depth below `directory`.

    Raises:
        DataError: none, or several that the caller has to choose from.
    """
    if not directory.is_dir():
        raise DataError(f"{directory}: no such folder; give a Fruits-360 folder or zip")
    roots = []
    for parent, folders, _ in os.walk(directory):
        names = {name.lower() for name in folders}
        if names & {"training", "train"} and "test" in names:
            roots.append(Path(parent))
            folders.clear()
    if not roots:
        raise DataError(
            f"{directory}: no Training and Test folders in it; expected the Fruits-360 layout"
            " Training/<class>/*.jpg and Test/<class>/*.jpg"
        )
    if len(roots) > 1:
        choices = ", ".join(str(root.relative_to(directory)) for root in sorted(roots))
        raise DataError(f"{directory}: several data sets in it ({choices}); give the path of one of them")
    return roots[0]


def find_images(directory: Path, *, label_level: str = "fruit") -> list[FoundImage]:
    """Every image below the Fruits-360 tree in `directory`, ordered by split, object, film and frame.

    Args:
        directory: any folder with the tree somewhere inside.
        label_level: for trees with a fruit and a variety level, which of the two is the class.

    Raises:
        DataError: no tree, no images, or files outside any class folder.
    """
    root = find_root(directory)
    found = []
    for folder in sorted(root.iterdir()):
        split = SPLIT_FOLDERS.get(folder.name.lower())
        if split is None or not folder.is_dir():
            continue
        for parent, folders, names in os.walk(folder):
            folders.sort()
            levels = Path(parent).relative_to(folder).parts
            images = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
            if levels and not folders and not images:
                raise DataError(f"{parent}: a class folder without images; add some or remove it")
            if images and not 1 <= len(levels) <= 2:
                raise DataError(
                    f"{parent}: images outside a class folder; expected {folder.name}/<class>/*.jpg"
                )
            for name in images:
                film, frame = _film_and_frame(Path(name).stem)
                label = " ".join(levels) if label_level == "variety" else levels[0]
                file = Path(parent, name)
                found.append(
                    FoundImage(file, file.relative_to(root), label, " ".join(levels), film, frame, split)
                )
    if not found:
        raise DataError(f"{root}: no images in its class folders ({', '.join(sorted(IMAGE_SUFFIXES))})")
    order = {"train": 0, "val": 1, "test": 2}
    found.sort(key=lambda image: (order[image.split], image.object, image.film, image.frame, image.file.name))
    return found


def _film_and_frame(stem: str) -> tuple[str, int]:
    match = _FILE_NAME.match(stem)
    if match is None:  # not a Fruits-360 name: every file its own film, so that no split cuts through one
        return stem, 0
    return match["film"] or "", int(match["frame"])
