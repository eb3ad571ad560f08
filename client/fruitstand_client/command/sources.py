"""Find the images that files, folders, globs, zip and tar files and `-` name.

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
# RuntimeError: a password or an unknown method. The others: damage.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)


class Member(io.BytesIO):
    """One image of an archive as an open file, named ARCHIVE/MEMBER."""

    def __init__(self, name: str, content: bytes) -> None:
        """Keep content that was read already."""
        super().__init__(content)
        self.name = name


def is_archive(name: str) -> bool:
    """Whether a name has the suffix of a zip or tar file."""
    return name.lower().endswith((*ZIP_SUFFIXES, *TAR_SUFFIXES))


def count_archived(path: str) -> int | None:
    """Number of images in a zip; None for a tar, which has no index.

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
    """Yield the images of an archive in its order; a damaged member of a zip becomes a failure.

    Raises:
        UsageError: no zip or tar, or damaged.
    """
    # One byte over the limit is enough to refuse the image.
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
            raise UsageError(f"{path}: damaged or truncated ({exc}); copy it again") from exc


def _open_zip(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as exc:
        raise UsageError(f"{path}: cannot be read as a zip ({exc}); copy it again") from exc


def _open_tar(path: str) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r|*")
    except (tarfile.TarError, EOFError, OSError) as exc:
        raise UsageError(f"{path}: cannot be read as a tar ({exc}); copy it again") from exc


Source: TypeAlias = Path | str | Member | EncodedImage
"""A file, an open member of an archive, or an image that was read already."""


def find_images(arguments: Iterable[str]) -> Iterator[Source]:
    """Yield the images that the arguments name, lazily and in order.

    Args:
        arguments: files, folders (searched to the bottom, sorted, through links), glob patterns, zip and tar
            files (not unpacked), or "-" for a list of paths on stdin.

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
            raise UsageError(f"{argument}: no images in it; images end in {kinds}")


def count_images(arguments: Iterable[str]) -> int | None:
    """Number of images that `find_images` will yield; None if that needs reading a whole stream.

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
    """Yield a folder's images; files and subfolders are sorted together.

    `above` holds device and inode of the folders it lies in.
    """
    try:
        info = folder.stat()
        here = (info.st_dev, info.st_ino)
        with os.scandir(folder) as entries:
            listed = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError as exc:
        raise UsageError(f"{folder}: the folder cannot be read: {exc.strerror}") from exc
    if here in above:
        raise UsageError(f"{folder}: is a link to a folder that contains it; remove the link")
    for name, is_folder in listed:
        if is_folder:
            yield from _walk(folder / name, (*above, here))
        elif is_image_name(name):
            yield folder / name
