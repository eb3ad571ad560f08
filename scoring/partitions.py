"""Cut the inputs of a scoring job into partitions, deterministically.

A partition holds only the locations of its images, so it is small; the worker that scores it reads the
images.
"""

import hashlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fruitstand.contract import IMAGE_SUFFIXES, Preprocessing
from fruitstand.errors import DataError, UsageError

MAX_ENCODED_BYTES = Preprocessing().max_encoded_bytes
KINDS = {".parquet": "parquet", ".tar": "tar", **dict.fromkeys(IMAGE_SUFFIXES, "image")}
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")


@dataclass(frozen=True, slots=True)
class Image:
    """One input."""

    index: int
    """Position among all inputs of the job, from 0."""
    path: str
    """File relative to the source, SHARD.tar/MEMBER, or the value of the id column."""
    content: bytes | str
    """The encoded image, or the reason why it cannot be read."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Where one or more images are: a file, a member of a tar, or a row group of a Parquet file."""

    file: str
    """Path relative to the source's folder."""
    num_images: int = 1
    member: str = ""
    """Name inside the tar."""
    start: int = 0
    """Offset of the member in bytes, or number of the row group."""
    size_bytes: int = 0
    """Size of the member in a tar."""


@dataclass(frozen=True, slots=True)
class Partition:
    """Consecutive inputs that are scored and written together."""

    number: int
    first: int
    """Index of the first input."""
    folder: Path
    pieces: tuple[Piece, ...]
    columns: tuple[str, str]
    """Names of the image column and the id column; Parquet only."""

    @property
    def num_images(self) -> int:
        """Number of inputs."""
        return sum(piece.num_images for piece in self.pieces)

    def read(self) -> Iterator[Image]:
        """Read the inputs in order; an unreadable image has the reason as its content.

        Raises:
            DataError: a Parquet file that was readable when the job was planned no longer is.
        """
        index = self.first
        for piece in self.pieces:
            if piece.file.endswith(".parquet"):
                contents = _read_rows(self.folder / piece.file, piece, self.columns)
            else:
                path = f"{piece.file}/{piece.member}" if piece.member else piece.file
                contents = iter([(path, _read_bytes(self.folder / piece.file, piece))])
            for path, content in contents:
                yield Image(index, path, content)
                index += 1


@dataclass(frozen=True, slots=True)
class Inputs:
    """All inputs of a job."""

    partitions: list[Partition]
    num_images: int
    sha256: str
    """Hash of all names, sizes and modification times, and of how the inputs are cut."""


def find_inputs(source: Path, *, partition_size: int, columns: tuple[str, str]) -> Inputs:
    """List a source's images and cut them into partitions.

    The source is a folder of images, of Parquet files or of WebDataset tars, or one such file. Row groups are
    not cut, so a partition may be larger. `columns` are Parquet's of image and id.

    Raises:
        UsageError: no input, several kinds of files, a compressed tar, or no such column.
        DataError: a tar or parquet file is damaged.
    """
    folder = source if source.is_dir() else source.parent
    files = _files(source)
    found = {kind for name in files if (kind := KINDS.get(Path(name).suffix.lower()))}
    compressed = next((name for name in files if name.lower().endswith(COMPRESSED_TARS)), None)
    if compressed:
        raise UsageError(f"{folder / compressed}: a compressed tar cannot be read in parts; decompress it")
    if len(found) != 1:
        what = f"holds files of several kinds ({', '.join(sorted(found))})" if found else "holds no image"
        raise UsageError(
            f"{source}: {what}; give a folder of images, of Parquet files or of tars, or one such file"
        )
    kind = found.pop()
    digest = hashlib.sha256(f"{partition_size} {columns if kind == 'parquet' else ''}".encode())
    pieces: list[Piece] = []
    for name in files:
        if KINDS.get(Path(name).suffix.lower()) == kind:
            stat = os.stat(folder / name)
            digest.update(os.fsencode(f"\n{name}\0{stat.st_size}\0{stat.st_mtime_ns}"))
            if kind == "image":
                pieces.append(Piece(name))
            elif kind == "tar":
                pieces += _members(folder / name, name)
            else:
                pieces += _row_groups(folder / name, name, columns)
    partitions: list[Partition] = []
    first = 0
    for cut in _cut(pieces, partition_size):
        partitions.append(Partition(len(partitions), first, folder, tuple(cut), columns))
        first += partitions[-1].num_images
    if not first:
        raise UsageError(f"{source}: holds no image")
    return Inputs(partitions, first, digest.hexdigest())


def _files(source: Path) -> list[str]:
    """Sorted names relative to the source's folder; links to folders are not followed, which avoids loops."""
    if not source.is_dir():
        if not source.exists():
            raise UsageError(f"{source}: no such file or folder")
        return [source.name]

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed: {error.strerror}") from error

    return sorted(
        os.path.relpath(os.path.join(parent, name), source)
        for parent, _, names in os.walk(source, onerror=refuse)
        for name in names
        if not name.startswith(".")
    )


def _members(path: Path, name: str) -> Iterator[Piece]:
    """Find the images in a tar; reads only the headers."""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isreg() and Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
                    yield Piece(name, 1, member.name, member.offset_data, member.size)
    except tarfile.TarError as exc:
        raise DataError(f"{path}: damaged, or not a tar file ({exc})") from exc


def _row_groups(path: Path, name: str, columns: tuple[str, str]) -> Iterator[Piece]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            missing = set(columns) - set(file.schema_arrow.names)
            if missing:
                raise UsageError(
                    f"{path}: no column {min(missing)!r}, it has {', '.join(file.schema_arrow.names)};"
                    " give the columns of image and id with --columns IMAGE,ID"
                )
            for number in range(file.num_row_groups):
                yield Piece(name, file.metadata.row_group(number).num_rows, start=number)
    except (pa.ArrowException, OSError) as exc:
        raise DataError(f"{path}: damaged, or not a Parquet file ({exc})") from exc


def _cut(pieces: list[Piece], partition_size: int) -> Iterator[list[Piece]]:
    """Group consecutive pieces into partitions of at least `partition_size` images, except the last."""
    run: list[Piece] = []
    num_images = 0
    for piece in pieces:
        run.append(piece)
        num_images += piece.num_images
        if num_images >= partition_size:
            yield run
            run, num_images = [], 0
    if run:
        yield run


def _read_bytes(path: Path, piece: Piece) -> bytes | str:
    """Read a file or a tar member, or return the reason why not; too large files are not read."""
    try:
        with path.open("rb", buffering=0) as file:
            size = piece.size_bytes if piece.member else os.fstat(file.fileno()).st_size
            if size > MAX_ENCODED_BYTES:
                return f"too many bytes: {size}, at most {MAX_ENCODED_BYTES} are allowed"
            return os.pread(file.fileno(), size, piece.start)
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"


def _read_rows(path: Path, piece: Piece, columns: tuple[str, str]) -> Iterator[tuple[str, bytes | str]]:
    """Read ids and images of a row group, a few at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    image, key = columns
    try:
        with pq.ParquetFile(path) as file:
            for rows in file.iter_batches(64, row_groups=[piece.start], columns=list(dict.fromkeys(columns))):
                for name, value in zip(rows[key].to_pylist(), rows[image].to_pylist(), strict=True):
                    # Hugging Face keeps an image as {bytes, path}.
                    content = value.get("bytes") if isinstance(value, dict) else value
                    yield str(name), content if isinstance(content, bytes) else "holds no encoded image"
    except (pa.ArrowException, OSError) as exc:
        raise DataError(f"{path}: cannot be read ({exc})") from exc
