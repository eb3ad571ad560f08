"""Copy all images that can be decoded into a prepared folder, on all cores.

Uses processes because for small images most of the time is spent in Python code, which threads cannot share.
"""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fruitstand.contract import Preprocessing
from fruitstand.errors import DataError, ImageRejected
from fruitstand.images.conversion import as_supported
from fruitstand.images.reference_decode import decode_reference
from fruitstand.images.thumbnail import thumbnail
from fruitstand.machine.threads import thread_budget
from fruitstand.manifest import ManifestRow
from fruitstand.progress import track
from training.data.class_folders import FoundImage
from training.data.file_tree import FolderTree, ZipTree, open_tree


class Copied(NamedTuple):
    """A copied image."""

    row: ManifestRow
    thumbnail: np.ndarray
    converted_from: str | None


CHUNK = 128
"""Images that a process takes at a time."""
MIN_POOLED = 1000
"""With fewer images, starting processes takes longer than copying."""


def copy_images(
    source: Path, found: list[FoundImage], staged: Path
) -> tuple[list[ManifestRow], np.ndarray, list[dict[str, str]], dict[str, int]]:
    """Copy every image that can be decoded; formats that the server does not read become PNG.

    Returns:
        A row and a thumbnail (see `training.data.thumbnails`) for each copied image, in the order of `found`;
        file and reason for each skipped one; the number of converted images by format.

    Raises:
        DataError: no image can be decoded, or the zip is damaged.
    """
    for folder in {(staged / "images" / image.relative).parent for image in found}:
        folder.mkdir(parents=True, exist_ok=True)
    copied: list[Copied] = []
    skipped: list[dict[str, str]] = []
    with _results(source, found, staged) as results:
        shown = track(results, total=len(found), description="prepare")
        for image, result in zip(found, shown, strict=True):
            if isinstance(result, str):
                name = image.relative.encode(errors="backslashreplace").decode()
                skipped.append({"file": name, "reason": result})
            else:
                copied.append(result)
    if not copied:
        raise DataError(f"none of {len(found)} images can be decoded; the first: {skipped[0]['reason']}")
    rows, thumbnails, formats = zip(*copied, strict=True)
    converted = dict(sorted(Counter(filter(None, formats)).items()))
    return list(rows), np.stack(thumbnails), skipped, converted


@contextlib.contextmanager
def _results(source: Path, found: list[FoundImage], staged: Path) -> Iterator[Iterator[Copied | str]]:
    """The result for each image; all processes have started when the block begins.

    The caller's progress bar starts a thread. Forking a process after that could deadlock on a lock the
    thread held.
    """
    if len(found) < MIN_POOLED:
        with open_tree(source) as tree:
            yield map(_Copier(tree, staged).copy, found)
        return
    num_workers = thread_budget()
    with ProcessPoolExecutor(num_workers, initializer=_start, initargs=(source, staged)) as pool:
        yield pool.map(_copy, found, chunksize=CHUNK)


class _Copier:
    """Copies images in one process."""

    def __init__(self, tree: FolderTree | ZipTree, staged: Path) -> None:
        self._tree, self._staged, self._preprocessing = tree, staged, Preprocessing()

    def copy(self, image: FoundImage) -> Copied | str:
        """Copy an image, or return the reason why it is skipped."""
        try:
            image.relative.encode()
            encoded = self._tree.read(image.name, self._preprocessing.max_encoded_bytes)
            encoded, converted_from = as_supported(encoded, self._preprocessing)
            small = thumbnail(decode_reference(encoded, self._preprocessing))
        except UnicodeEncodeError:
            return "its name is not UTF-8"
        except ImageRejected as exc:
            return str(exc)
        except OSError as exc:
            return f"cannot be read: {exc.strerror}"
        # Append .png to the whole name: another file may differ only in its suffix.
        target = f"images/{image.relative}{'.png' if converted_from else ''}"
        (self._staged / target).write_bytes(encoded)
        digest = hashlib.sha256(encoded).hexdigest()
        row = ManifestRow(target, digest, image.label, image.object, image.film, image.frame, image.split)
        return Copied(row, small, converted_from)


_copier: _Copier
"""Set in each process of the pool when it starts."""


def _start(source: Path, staged: Path) -> None:
    global _copier
    _copier = _Copier(open_tree(source), staged)


def _copy(image: FoundImage) -> Copied | str:
    return _copier.copy(image)
