"""Images inside zip and tar files, read one by one, never unpacked."""

import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

from fruitstand.errors import UsageError
from fruitstand.images.conversion import is_image_name
from fruitstand_client.images import MAX_ENCODED_BYTES

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
# A password is a RuntimeError, an unknown method a NotImplementedError, the rest is damage.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, NotImplementedError)


class Member(io.BytesIO):
    """One image of an archive as an open file; its name is the archive's, a slash, and its own."""

    def __init__(self, name: str, content: bytes) -> None:
        """Hold a content that was read already."""
        super().__init__(content)
        self.name = name


class ZipMember:
    """One image of a zip as an open file that is read when somebody reads it."""

    def __init__(self, name: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
        """Note where it lies."""
        self.name = name
        self._archive = archive
        self._info = info

    def read(self, size: int = -1) -> bytes:
        """Its first `size` bytes.

        Raises:
            OSError: it is damaged or encrypted.
        """
        try:
            with self._archive.open(self._info) as file:
                return file.read(size)
        except _DAMAGED as exc:
            raise OSError(f"damaged or encrypted in the archive ({exc})") from exc


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


def archive_images(path: str) -> Iterator[ZipMember | Member]:
    """The images of an archive, in its own order.

    Raises:
        UsageError: no zip or tar, or damaged.
    """
    if path.lower().endswith(ZIP_SUFFIXES):
        archive = _open_zip(path)  # stays open as long as one of its members is to be read
        for info in archive.infolist():
            if is_image_name(info.filename):
                yield ZipMember(f"{path}/{info.filename}", archive, info)
        return
    with _open_tar(path) as stream:
        try:
            for member in stream:
                if member.isfile() and is_image_name(member.name):
                    file = stream.extractfile(member)
                    assert file is not None  # a regular file has one
                    # One byte over the limit is enough to be refused; a tar is read in its own order.
                    yield Member(f"{path}/{member.name}", file.read(MAX_ENCODED_BYTES + 1))
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
