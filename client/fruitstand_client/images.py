"""Accepted kinds of images, and how each is read into the bytes to send."""

import io
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import fruitstand.errors
from fruitstand.contract import Preprocessing
from fruitstand.errors import UsageError
from fruitstand.images.conversion import as_supported
from fruitstand_client.errors import ImageRejected

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class OpenFile(Protocol):
    """An open binary file."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes."""


Image: TypeAlias = "str | Path | bytes | OpenFile | EncodedImage | NDArray[np.uint8]"
"""A path, a file's content, an open file, an `EncodedImage`, or an array (H, W, 3) uint8, RGB."""

PREPROCESSING = Preprocessing()
MAX_ENCODED_BYTES = PREPROCESSING.max_encoded_bytes


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image as bytes to send, or why it cannot be sent."""

    name: str
    content: bytes = b""
    failure: ImageRejected | None = None
    converted_from: str | None = None
    """Format of the caller's file, if `content` is a PNG or smaller JPEG converted from it."""


def read_batches(
    images: Iterable[Image], *, batch_bytes: int, shrink: bool = False
) -> Iterator[list[EncodedImage]]:
    """Read images in order and group them into requests below the size limit.

    A truncated file gets its own request. Otherwise it would be zero-padded to the size of the others,
    and the server would decode the zeros as its end and answer a truncated image.

    Every image counts as much towards `batch_bytes` as the largest, to which it is padded.
    """
    batch: list[EncodedImage] = []
    longest = 0
    for image in images:
        one = _shrink(read_image(image)) if shrink else read_image(image)
        is_open = not _has_its_end(one.content)
        longest = max(longest, len(one.content))
        if batch and (is_open or (len(batch) + 1) * longest > batch_bytes):
            yield batch
            batch, longest = [], len(one.content)
        batch.append(one)
        if is_open:
            yield batch
            batch, longest = [], 0
    if batch:
        yield batch


def read_image(image: Image) -> EncodedImage:
    """Read one image and check its header; files above the size limit are not read.

    A format that the server does not read becomes PNG, see `fruitstand.images.conversion`.

    Raises:
        UsageError: its type is not in `Image`, or it is an array and Pillow is not installed.
    """
    if isinstance(image, EncodedImage):
        return image
    name = image_name(image)
    try:
        content = _content(image, name)
        content, converted_from = as_supported(content, PREPROCESSING)
    except OSError as exc:
        return EncodedImage(name, failure=ImageRejected(f"cannot be read: {exc.strerror or exc}"))
    except ImageRejected as exc:
        return EncodedImage(name, failure=exc)
    except fruitstand.errors.ImageRejected as exc:
        return EncodedImage(name, failure=ImageRejected(str(exc)))
    return EncodedImage(name, content, converted_from=converted_from)


def _shrink(image: EncodedImage) -> EncodedImage:
    from fruitstand_client.shrink import shrunk

    if image.failure is not None:
        return image
    try:
        smaller = shrunk(image.content, PREPROCESSING)
    except fruitstand.errors.ImageRejected as exc:
        return replace(image, content=b"", failure=ImageRejected(str(exc)))
    if smaller is None:
        return image
    content, done = smaller
    before = f"{image.converted_from}, " if image.converted_from else ""
    return replace(image, content=content, converted_from=before + done)


def image_name(image: Image) -> str:
    """Name of an image: its path or the open file's name; empty for bytes and arrays."""
    if isinstance(image, str | Path):
        return str(image)
    name = getattr(image, "name", "")
    return name if isinstance(name, str) else ""


def _content(image: Image, name: str) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str) and "://" in image:
        raise ImageRejected("is a URL: fetch it yourself and pass its content")
    if isinstance(image, str | Path):
        return _read_path(name)
    if hasattr(image, "read"):
        return _read_open(image)
    if hasattr(image, "dtype"):
        return _encode(image)
    raise UsageError(
        f"an image: got {type(image).__name__}, expected a path, bytes, an open file or an array"
    )


def _read_path(path: str) -> bytes:
    info = os.stat(path)  # before open, which would block on a named pipe
    if not stat.S_ISREG(info.st_mode):
        raise ImageRejected("cannot be read: no file, but a folder or a device")
    if info.st_size > MAX_ENCODED_BYTES:
        raise ImageRejected(f"too many bytes: {info.st_size}, at most {MAX_ENCODED_BYTES} are allowed")
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _read_open(file: Any) -> bytes:
    content = file.read(MAX_ENCODED_BYTES + 1)
    if not isinstance(content, bytes):
        raise UsageError(f"{image_name(file) or 'an open file'}: opened as text; open it with mode 'rb'")
    if len(content) > MAX_ENCODED_BYTES:
        raise ImageRejected(f"too many bytes: at most {MAX_ENCODED_BYTES} are allowed")
    return content


def _has_its_end(content: bytes) -> bool:
    """Whether an encoded image is complete by its format; a PNG's decoder checks its checksums instead."""
    if content[:2] == b"\xff\xd8":
        return content.rstrip(b"\0").endswith(b"\xff\xd9")
    if content[:4] == b"RIFF":
        return len(content) >= 8 + int.from_bytes(content[4:8], "little")
    if content[:2] == b"BM":
        return len(content) >= int.from_bytes(content[2:6], "little")
    return True


def _encode(array: Any) -> bytes:
    """Encode an array as PNG, which is lossless."""
    if str(array.dtype) != "uint8" or array.ndim != 3 or array.shape[2] != 3:
        raise ImageRejected(
            f"an array: got {tuple(array.shape)} {array.dtype}, expected (H, W, 3) uint8, RGB, 0 to 255"
        )
    try:
        from PIL import Image as pillow
    except ModuleNotFoundError as exc:
        raise UsageError(
            "an array is sent as PNG, which needs Pillow: pip install 'fruitstand[classify]', or send bytes"
        ) from exc
    encoded = io.BytesIO()
    pillow.fromarray(array).save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()
