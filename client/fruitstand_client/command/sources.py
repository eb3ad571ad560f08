"""Which images a user means by files, folders, globs, zip and tar files, URLs and `-`.

Archives are read one image after the other and never unpacked.
"""

import glob
import io
import lzma
import os
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from fruitstand.contract import IMAGE_SUFFIXES
from fruitstand.errors import UsageError
from fruitstand.images.conversion import CONVERTED_SUFFIXES, is_image_name
from fruitstand_client.errors import ImageRejected
from fruitstand_client.images import MAX_ENCODED_BYTES, EncodedImage

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
# A password and an unknown method are RuntimeErrors, the rest is damage.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)


class Member(io.BytesIO):
    """One image of an archive as an open file; its name is the archive's, a slash, and its own."""

    def __init__(self, name: str, content: bytes) -> None:
        """Hold a content that was read already."""
        super().__init__(content)
        self.name = name


def is_archive(name: str) -> bool:
    """Whether a name ends as a zip's or a tar's does."""
    return name.lower().endswith((*ZIP_SUFFIXES, *TAR_SUFFIXES))


def count_archived(path: str) -> int | None:
    """How many images a zip lists; None for a tar, which has no list.

    Raises:
        UsageError: no zip or tar, or damaged.
    """
    if not path.lower().endswith(ZIP_SUFFIXES):
        _open_tar(path).close()
        return None
    with _open_zip(path) as archive:
        count = sum(map(is_image_name, archive.namelist()))
    if not count:
        raise UsageError(f"{path}: no images in it")
    return count


def archive_images(path: str) -> Iterator[Member | EncodedImage]:
    """The images of an archive, in its own order; a damaged member of a zip is one with a failure.

    Raises:
        UsageError: no zip or tar, or damaged.
    """
    # One byte over the limit is enough to be refused.
    if path.lower().endswith(ZIP_SUFFIXES):
        with _open_zip(path) as archive:
            for info in filter(lambda one: is_image_name(one.filename), archive.infolist()):
                name = f"{path}/{info.filename}"
                try:
                    with archive.open(info) as file:
                        yield Member(name, file.read(MAX_ENCODED_BYTES + 1))
                except _DAMAGED as exc:
                    reason = f"cannot be read: damaged or encrypted in the archive ({exc})"
                    yield EncodedImage(name, failure=ImageRejected(reason))
        return
    with _open_tar(path) as stream:
        try:
            for member in stream:
                if member.isfile() and is_image_name(member.name):
                    content = stream.extractfile(member)
                    assert content is not None  # a regular file has one
                    yield Member(f"{path}/{member.name}", content.read(MAX_ENCODED_BYTES + 1))
        except (tarfile.TarError, EOFError, OSError) as exc:
            raise UsageError(f"{path}: damaged, or it ends too early ({exc}); copy it anew") from exc


def _open_zip(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as exc:
        raise UsageError(f"{path}: cannot be read as a zip ({exc}); copy it anew") from exc


def _open_tar(path: str) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r|*")
    except (tarfile.TarError, EOFError, OSError) as exc:
        raise UsageError(f"{path}: cannot be read as a tar ({exc}); copy it anew") from exc


Source: TypeAlias = Path | str | Member | EncodedImage
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
