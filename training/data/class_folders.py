"""Find the images of a Fruits-360 tree, whatever its version calls its folders.

Every release is some nesting around `Training/<class>/*.jpg` and `Test/<class>/*.jpg`; the original-size set
adds `Validation`, the 3-body set one level more, `Training/<fruit>/<variety>/*.jpg`. A download from Kaggle
holds several of them side by side; `subset` picks one.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath

from fruitstand.contract import IMAGE_SUFFIXES
from fruitstand.errors import DataError
from fruitstand.images.conversion import CONVERTED_SUFFIXES, is_image_name
from training.data.file_tree import Listing

SPLIT_FOLDERS = {"training": "train", "train": "train", "validation": "val", "val": "val", "test": "test"}
SPLITS = ("train", "val", "test")

_FILE_NAME = re.compile(r"^(?:(?P<film>r\d*)_)?(?P<frame>\d+)(?:_\d+)?$")
_WORD_END = re.compile(r"[ _]")


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image file and what its place in the tree says about it."""

    name: str
    """In the tree."""
    relative: str
    """Below the root: split folder, class folder (or two), file name."""
    label: str
    object: str
    film: str
    frame: int
    split: str


def find_root(listing: Listing, *, subset: str = "") -> str:
    """The folder that holds the `Training` and `Test` folders.

    Args:
        listing: of the tree.
        subset: of several, the one with this in its path; upper or lower case.

    Raises:
        DataError: none, or several that the caller has to choose from.
    """
    children: dict[str, set[str]] = defaultdict(set)
    for folder in listing.folders:
        if folder:
            parent, _, name = folder.rpartition("/")
            children[parent].add(name.lower())
    roots: list[str] = []
    for folder in sorted(children, key=lambda name: (name.count("/"), name)):
        inside = any(not root or folder.startswith(f"{root}/") for root in roots)
        if not inside and children[folder] & {"training", "train"} and "test" in children[folder]:
            roots.append(folder)
    if not roots:
        raise DataError(
            "no Training and Test folders in it; expected the Fruits-360 layout"
            " Training/<class>/*.jpg and Test/<class>/*.jpg"
        )
    chosen = [root for root in roots if subset.lower() in root.lower()]
    if len(chosen) != 1:
        which = f"{len(chosen)} data sets with {subset!r} in their path" if subset else "several data sets"
        raise DataError(f"{which} in it ({', '.join(sorted(roots))}); choose one with --subset")
    return chosen[0]


def find_images(
    listing: Listing, *, label_level: str = "fruit", group_varieties: bool = False, subset: str = ""
) -> list[FoundImage]:
    """Every image of a Fruits-360 tree, ordered by split, object, film and frame.

    Args:
        listing: of a tree with the data set somewhere inside.
        label_level: for trees with a fruit and a variety level, which of the two is the class.
        group_varieties: for trees with one level, whether the class is the fruit, the name's first word.
        subset: see `find_root`.

    Raises:
        DataError: no tree, no images, or files outside any class folder.
    """
    root = find_root(listing, subset=subset)
    prefix = f"{root}/" if root else ""
    found = []
    filled = set()
    for name in listing.files:
        path = PurePosixPath(name.removeprefix(prefix))
        split = SPLIT_FOLDERS.get(path.parts[0].lower())
        if not name.startswith(prefix) or split is None or not is_image_name(path.name):
            continue
        levels = path.parts[1:-1]
        if not 1 <= len(levels) <= 2:
            raise DataError(
                f"{path.parent}: images outside a class folder; expected {path.parts[0]}/<class>/*.jpg"
            )
        filled.update(str(parent) for parent in path.parents)
        variety = _variety(levels)
        if len(levels) == 2:
            label = variety if label_level == "variety" else levels[0]
        else:
            label = fruit_of(variety) if group_varieties else variety
        film, frame = _film_and_frame(path.stem)
        found.append(FoundImage(name, str(path), label, variety, film, frame, split))
    for folder in listing.folders:
        relative = folder.removeprefix(prefix)
        top, _, levels = relative.partition("/")
        is_class = folder.startswith(prefix) and levels and top.lower() in SPLIT_FOLDERS
        if is_class and relative not in filled:
            raise DataError(f"{relative}: a class folder without images; add some or remove it")
    if not found:
        raise DataError(
            f"no images in its class folders ({', '.join(sorted(IMAGE_SUFFIXES | CONVERTED_SUFFIXES))})"
        )
    found.sort(key=lambda one: (SPLITS.index(one.split), one.object, one.film, one.frame, one.relative))
    return found


def fruit_of(variety: str) -> str:
    """The fruit of a variety's folder: "Apple" of "Apple Braeburn 1" and of "apple_6"."""
    return _WORD_END.split(variety)[0]


def _variety(levels: tuple[str, ...]) -> str:
    if len(levels) == 2 and levels[1].lower().startswith(levels[0].lower()):
        return levels[1]  # the 3-body set repeats the fruit: Apple/Apple Braeburn 1
    return " ".join(levels)


def _film_and_frame(stem: str) -> tuple[str, int]:
    match = _FILE_NAME.match(stem)
    if match is None:  # not a Fruits-360 name: every file its own film, so that no split cuts through one
        return stem, 0
    return match["film"] or "", int(match["frame"])
