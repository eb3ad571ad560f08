"""List and read the files of a data set in a folder or a zip.

Names are relative to the root, with `/` between their parts. A zip is read without unpacking it, one file at
a time, so memory and disk space do not grow with the data.
"""

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fruitstand.errors import DataError

_NO_DATA = ("__MACOSX", ".")
"""Files and folders with these prefixes are metadata of macOS or hidden; they are skipped."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The names in a tree."""

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    """The root is the empty name."""


class FolderTree(AbstractContextManager["FolderTree"]):
    """A folder; symbolic links are followed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def listing(self) -> Listing:
        """List all files and folders.

        Raises:
            DataError: a link leads to a folder above itself, or a folder cannot be read.
        """
        listing = Listing(folders=[""])
        for name, is_folder in self._walk("", ()):
            (listing.folders if is_folder else listing.files).append(name)
        return listing

    def read(self, name: str, max_bytes: int) -> bytes:
        """Read at most `max_bytes` + 1 bytes, so that the caller can tell a larger file.

        Raises:
            OSError: the file cannot be read.
        """
        with (self._folder / name).open("rb") as file:
            return file.read(max_bytes + 1)

    def __exit__(self, *_: object) -> None:
        """Do nothing; only a zip stays open."""

    def _walk(self, name: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, bool]]:
        folder = self._folder / name
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in above:
                raise DataError(f"{folder}: a link to a folder above it, an endless loop; remove the link")
            above = (*above, (status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            kinds = [(entry, entry.is_dir()) for entry in entries if not entry.name.startswith(_NO_DATA)]
        except OSError as exc:
            raise DataError(f"{exc.filename or folder}: cannot be read ({exc.strerror})") from exc
        for entry, is_folder in kinds:
            below = f"{name}/{entry.name}" if name else entry.name
            if is_folder:
                yield below, True
                yield from self._walk(below, above)
            elif entry.is_symlink() or entry.is_file():  # a broken link is reported later as unreadable
                yield below, False


class ZipTree(AbstractContextManager["ZipTree"]):
    """A zip, read without unpacking it.

    Raises:
        DataError: not a readable zip, or a name in it points outside.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError) as exc:
            raise DataError(
                f"{path}: neither a folder nor a readable zip ({exc}); download it again"
            ) from exc
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in self._archive.infolist():
            name = PurePosixPath(info.filename)
            if name.is_absolute() or ".." in name.parts or "\\" in info.filename:
                self._archive.close()
                raise DataError(f"{path}: unsafe zip: {info.filename!r} points outside the archive")
            self._members[str(name)] = info  # PurePosixPath drops the "./" that some programs write

    def listing(self) -> Listing:
        """List all files and folders, including folders without an entry of their own."""
        listing, folders = Listing(), {""}
        for name, info in self._members.items():
            path = PurePosixPath(name)
            if not path.parts or any(part.startswith(_NO_DATA) for part in path.parts):
                continue
            if info.is_dir():
                folders.add(str(path))
            else:
                listing.files.append(str(path))
            folders.update(str(parent) for parent in path.parents if parent.parts)
        listing.folders.extend(sorted(folders))
        return listing

    def read(self, name: str, max_bytes: int) -> bytes:
        """Read at most `max_bytes` + 1 bytes, so that the caller can tell a larger file.

        Raises:
            DataError: the archive is damaged at this file.
        """
        try:
            with self._archive.open(self._members[name]) as file:
                return file.read(max_bytes + 1)
        # zipfile raises RuntimeError for a password and NotImplementedError for an unknown compression.
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as exc:
            raise DataError(f"{self._path}: {name} cannot be unpacked ({exc}); download it again") from exc

    def __exit__(self, *_: object) -> None:
        self._archive.close()


def open_tree(source: Path) -> FolderTree | ZipTree:
    """Open the folder or zip at `source`.

    Raises:
        DataError: nothing is there, or the zip is damaged or unsafe.
    """
    if not source.exists():
        raise DataError(f"{source}: no such folder or zip")
    return FolderTree(source) if source.is_dir() else ZipTree(source)
