"""Shrink photographs before they are sent, because models use few of their pixels."""

import io

from fruitstand.contract import Preprocessing
from fruitstand.errors import UsageError
from fruitstand.images.structure import inspect_image

SHORT_SIDE = 512
"""Smallest shorter side, pixels: twice the size of a 224 model's resize, five times the default model's."""
MAX_SHORT_SIDE = 576
QUALITY = 92
"""Quality of the JPEG that is sent, without chroma subsampling."""


def shrunk(content: bytes, limits: Preprocessing) -> tuple[bytes, str] | None:
    """A JPEG of the same picture, upright, whose shorter side has 512 to 576 pixels.

    Returns:
        The file and a description of the change; None if the picture is small enough, or the file would grow.

    Raises:
        ImageRejected: the server would refuse the image.
        UsageError: Pillow is not installed.
    """
    inspected = inspect_image(content, limits)
    header = inspected.header
    if min(header.width, header.height) <= SHORT_SIDE:
        return None
    try:
        from fruitstand.images.reference_decode import resized_picture

        side = _short_side(header.width, header.height)
        target = Preprocessing(input_size=(side, side), reduced_decode=1.0)
        picture = resized_picture(inspected, target, reduced=True)
    except ModuleNotFoundError as exc:
        raise UsageError("shrink: needs Pillow: pip install 'fruitstand[classify]'") from exc
    file = io.BytesIO()
    picture.info = {}  # the orientation is already applied
    picture.save(file, "JPEG", quality=QUALITY, subsampling=0)
    if file.tell() >= len(content):
        return None
    return file.getvalue(), f"{header.format}, shrunk to {picture.width} x {picture.height}"


def _short_side(width: int, height: int) -> int:
    """Choose the shorter side so that rounding the other one changes the aspect ratio least.

    Otherwise the server's resize might round to another pixel than for the original.
    """
    ratio = max(width, height) / min(width, height)
    return min(
        range(SHORT_SIDE, MAX_SHORT_SIDE + 1), key=lambda side: abs(side * ratio - round(side * ratio))
    )
