"""Find the images of a tree of class folders, with or without folders for training and test above them.

Fruits-360 is some nesting around `Training/<class>/*.jpg` and `Test/<class>/*.jpg`; the original-size set
adds `Validation`, the 3-body set one level more, `Training/<fruit>/<variety>/*.jpg`. A download from Kaggle
holds several of them side by side; `subset` picks one. Other data sets write `train`, `valid` or `dev`, or
have `<class>/*.jpg` alone, which `training.data.splits` then splits.
"""

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath

from fruitstand.contract import IMAGE_SUFFIXES
from fruitstand.errors import DataError
from fruitstand.images.conversion import CONVERTED_SUFFIXES, is_image_name
from training.data.file_tree import Listing

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Lower-case names of folders, and of what stands in a table's split column."""
SPLITS = ("train", "val", "test")

_FILE_NAME = re.compile(r"^(?:(?P<film>r\d*)_)?(?P<frame>\d+)(?:_\d+)?$")
_NUMBERED = re.compile(r"^(?P<film>.*?)[\W_]*(?P<frame>\d{1,18})\W?$")
"""A name with a number at its end: "patient07_003", "scan (14)"."""
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


def find_root(listing: Listing, *, subset: str = "") -> tuple[str, bool]:
    """The folder that holds the split folders, or else the class folders.

    Args:
        listing: of the tree.
        subset: of several, the one with this in its path; upper or lower case.

    Returns:
        The folder, and whether it has split folders.

    Raises:
        DataError: none, or several that the caller has to choose from.
    """
    splits: dict[str, dict[str, str]] = defaultdict(dict)
    for folder in listing.folders:
        parent, _, name = folder.rpartition("/")
        if name.lower() in SPLIT_FOLDERS:
            splits[parent][SPLIT_FOLDERS[name.lower()]] = name
    roots: list[str] = []
    for folder in sorted(splits, key=lambda name: (name.count("/"), name)):
        inside = any(not root or folder.startswith(f"{root}/") for root in roots)
        if not inside and "train" in splits[folder] and len(splits[folder]) > 1:
            roots.append(folder)
    chosen = [root for root in roots if subset.lower() in root.lower()]
    if len(chosen) == 1:
        return chosen[0], True
    if roots or subset:
        which = f"{len(chosen)} data sets with {subset!r} in their path" if subset else "several data sets"
        raise DataError(f"{which} in it ({', '.join(sorted(roots))}); choose one with --subset")
    root = _class_root(listing)
    if splits[root]:
        raise DataError(
            f"{' and '.join(splits[root].values())} in it, but no Training and Test folders: name them"
            " train and test, or give a folder that holds class folders alone"
        )
    return root, False


def _class_root(listing: Listing) -> str:
    """The folder below which all images lie, each in a class folder."""
    folders = {os.path.dirname(name) for name in listing.files if is_image_name(name)}
    if not folders:
        raise _no_images()
    root = os.path.commonpath(folders) if "" not in folders else ""
    if root in folders:
        only = "all images lie in one folder" if len(folders) == 1 else "images lie beside the class folders"
        raise DataError(
            f"{root or '.'}: {only}; expected <class>/*.jpg with two classes or more,"
            " or a CSV with the columns path,label"
        )
    return root


def _no_images() -> DataError:
    return DataError(f"no images in it ({', '.join(sorted(IMAGE_SUFFIXES | CONVERTED_SUFFIXES))})")


def find_images(
    listing: Listing, *, label_level: str = "fruit", group_varieties: bool = False, subset: str = ""
) -> list[FoundImage]:
    """Every image of a tree, ordered by split, object, film and frame; without split folders all are train.

    Args:
        listing: of a tree with the data set somewhere inside.
        label_level: for trees with a fruit and a variety level, which of the two is the class.
        group_varieties: for trees with one level, whether the class is the fruit, the name's first word.
        subset: see `find_root`.

    Raises:
        DataError: no tree, no images, or files outside any class folder.
    """
    root, has_splits = find_root(listing, subset=subset)
    prefix = f"{root}/" if root else ""
    found = []
    filled = set()
    for name in listing.files:
        path = PurePosixPath(name.removeprefix(prefix))
        split = SPLIT_FOLDERS.get(path.parts[0].lower()) if has_splits else "train"
        if not name.startswith(prefix) or split is None or not is_image_name(path.name):
            continue
        levels = path.parts[has_splits:-1]
        if not levels:
            raise DataError(
                f"{path.parent}: images outside a class folder; expected {path.parts[0]}/<class>/*.jpg"
            )
        filled.update(str(parent) for parent in path.parents)
        variety = _variety(levels[:2])
        if len(levels) >= 2:
            label = variety if label_level == "variety" else levels[0]
        else:
            label = fruit_of(variety) if group_varieties else variety
        film, frame = film_and_frame(path.stem, numbered=not has_splits)
        film = "/".join((*levels[2:], film))
        found.append(FoundImage(name, str(path), label, variety, film, frame, split))
    for folder in listing.folders:
        relative = folder.removeprefix(prefix)
        split_folder, _, levels = relative.partition("/") if has_splits else ("train", "", relative)
        is_class = folder.startswith(prefix) and levels and split_folder.lower() in SPLIT_FOLDERS
        if is_class and relative not in filled:
            raise DataError(f"{relative}: a class folder without images; add some or remove it")
    if not found:
        raise _no_images()
    return sorted(found, key=order)


def order(image: FoundImage) -> tuple[int, str, str, int, str]:
    """By split, object, film and frame."""
    return SPLITS.index(image.split), image.object, image.film, image.frame, image.relative


def fruit_of(variety: str) -> str:
    """The fruit of a variety's folder: "Apple" of "Apple Braeburn 1" and of "apple_6"."""
    return _WORD_END.split(variety)[0]


def _variety(levels: tuple[str, ...]) -> str:
    if len(levels) == 2 and levels[1].lower().startswith(levels[0].lower()):
        return levels[1]  # the 3-body set repeats the fruit: Apple/Apple Braeburn 1
    return " ".join(levels)


def film_and_frame(stem: str, *, numbered: bool) -> tuple[str, int]:
    """The series that a file belongs to, and its number there.

    Args:
        stem: the file's name without its ending.
        numbered: any name with a number at its end counts, not only Fruits-360's. What has no number is a
            series of its own, so that no split cuts through one.
    """
    match = _FILE_NAME.match(stem) or (_NUMBERED.match(stem) if numbered else None)
    return (match["film"] or "", int(match["frame"])) if match else (stem, 0)
