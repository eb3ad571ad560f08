"""Which images a user means by files, folders, globs, archives, URLs and `-`."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from fruitstand.contract import IMAGE_SUFFIXES
from fruitstand.errors import UsageError
from fruitstand.images.conversion import CONVERTED_SUFFIXES, is_image_name
from fruitstand_client.command.archives import Member, ZipMember, archive_images, count_archived, is_archive
from fruitstand_client.images import EncodedImage

Source = Path | str | Member | ZipMember | EncodedImage
"""A file, a URL, an open member of an archive, or an image that was read already."""


def find_images(arguments: Iterable[str]) -> Iterator[Source]:
    """Every image that the arguments name, in their order, found as they are asked for.

    Args:
        arguments: files, folders (searched to the bottom, sorted, through links), glob patterns, zip and tar
            files (not unpacked), URLs, or "-" for a list of paths on stdin.

    Yields:
        What the client takes for an image.

    Raises:
        UsageError: an argument that matches nothing, a folder or an archive without images or that cannot be
            read, or a folder that contains itself.
    """
    for argument in arguments:
        found = False
        for found_one in _matches(argument):
            found = True
            yield found_one
        if not found and argument != "-":
            kinds = ", ".join(sorted(IMAGE_SUFFIXES | CONVERTED_SUFFIXES))
            raise UsageError(f"{argument}: no images in it; files that end in {kinds} are taken for images")


def count_images(arguments: Iterable[str]) -> int | None:
    """How many images `find_images` will find; None where that takes reading a whole stream first.

    Raises:
        UsageError: as `find_images`, but before anything was sent.
    """
    total: int | None = 0
    for argument in arguments:
        if argument == "-":
            count = None
        elif is_archive(argument) and os.path.isfile(argument):
            count = count_archived(argument)
        else:
            count = sum(1 for _ in find_images([argument]))
        total = None if total is None or count is None else total + count
    return total


def _matches(argument: str) -> Iterator[Source]:
    if argument == "-":
        for line in sys.stdin:
            if name := line.rstrip("\n"):
                yield name if "://" in name else Path(name)
    elif "://" in argument:
        yield argument
    elif os.path.isdir(argument):
        yield from _walk(Path(argument), ())
    elif os.path.exists(argument):
        if is_archive(argument):
            yield from archive_images(argument)
        else:
            yield Path(argument)
    else:
        names = sorted(name for name in glob.iglob(argument, recursive=True) if not os.path.isdir(name))
        if not names:
            raise UsageError(f"{argument}: no such file or folder, and nothing matches it as a pattern")
        yield from map(Path, names)


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """A folder's images, each folder's own files and subfolders in one sorted order.

    Args:
        folder: where to look.
        above: device and inode of the folders it lies in.
    """
    try:
        info = folder.stat()
        here = (info.st_dev, info.st_ino)
        with os.scandir(folder) as entries:
            listed = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError as exc:
        raise UsageError(f"{folder}: the folder cannot be read: {exc.strerror}") from exc
    if here in above:
        raise UsageError(f"{folder}: leads back to a folder it lies in; remove this link")
    for name, is_folder in listed:
        if is_folder:
            yield from _walk(folder / name, (*above, here))
        elif is_image_name(name):
            yield folder / name
