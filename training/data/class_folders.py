"""Find the images in a tree of class folders, with or without split folders above them.

Fruits-360 has `Training/<class>/*.jpg` and `Test/<class>/*.jpg` inside some other folders. Its original-size
set adds `Validation`; its 3-body set has two levels, `Training/<fruit>/<variety>/*.jpg`. A download from
Kaggle holds several of these sets; `subset` picks one. Other data sets write `train`, `valid` or `dev`, or
have only `<class>/*.jpg`, which `training.data.splits` then splits.
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
"""Lower-case names of split folders, and values of a table's split column."""
SPLITS = ("train", "val", "test")

_FILE_NAME = re.compile(r"^(?:(?P<film>r\d*)_)?(?P<frame>\d+)(?:_\d+)?$")
_NUMBERED = re.compile(r"^(?P<film>.*?)[\W_]*(?P<frame>\d{1,18})\W?$")
"""Names that end with a number, such as "patient07_003" or "scan (14)"."""
_WORD_END = re.compile(r"[ _]")


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image file, with label, object, film and frame as its path gives them."""

    name: str
    """Path in the tree."""
    relative: str
    """Path below the data set's root: split folder, one or two class folders, file name."""
    label: str
    object: str
    film: str
    frame: int
    split: str


def find_root(listing: Listing, *, subset: str = "") -> tuple[str, bool]:
    """Find the folder that holds the split folders, or else the class folders.

    Args:
        listing: the files and folders of the tree.
        subset: picks the data set with this text in its path; case does not matter.

    Returns:
        The folder, and whether it has split folders.

    Raises:
        DataError: there is no data set, or several without a `subset` that picks one.
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
            f"has a folder {' and '.join(splits[root].values())}, but not both Training and Test: rename the"
            " folders to train and test, or give a folder that holds only class folders"
        )
    return root, False


def _class_root(listing: Listing) -> str:
    """Find the folder whose sub-folders are the classes."""
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
    """Find every image of a tree, ordered by split, object, film and frame.

    Without split folders the split of all images is train.

    Args:
        listing: the files and folders of a tree with the data set somewhere inside.
        label_level: which level is the class, if there are a fruit and a variety level.
        group_varieties: for one level, use its first word, the fruit, as the class.
        subset: see `find_root`.

    Raises:
        DataError: no data set, no images, or images outside a class folder.
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
            raise DataError(f"{relative}: this class folder has no images; add some or remove it")
    if not found:
        raise _no_images()
    return sorted(found, key=order)


def order(image: FoundImage) -> tuple[int, str, str, int, str]:
    """Sort key: split, object, film, frame, path."""
    return SPLITS.index(image.split), image.object, image.film, image.frame, image.relative


def fruit_of(variety: str) -> str:
    """The fruit in a variety's name: "Apple" for "Apple Braeburn 1", "apple" for "apple_6"."""
    return _WORD_END.split(variety)[0]


def _variety(levels: tuple[str, ...]) -> str:
    if len(levels) == 2 and levels[1].lower().startswith(levels[0].lower()):
        return levels[1]  # the 3-body set repeats the fruit: Apple/Apple Braeburn 1
    return " ".join(levels)


def film_and_frame(stem: str, *, numbered: bool) -> tuple[str, int]:
    """The film (series of images) that a file belongs to, and its number in it.

    Args:
        stem: the file's name without its suffix.
        numbered: accept any name that ends with a number, not only those of Fruits-360. A file without a
            number is a film of its own, so that no split cuts through a series.
    """
    match = _FILE_NAME.match(stem) or (_NUMBERED.match(stem) if numbered else None)
    return (match["film"] or "", int(match["frame"])) if match else (stem, 0)
