"""Convert formats that the server does not read to PNG: HEIC, AVIF, TIFF, GIF, JPEG 2000 and ICO.

`fruitstand classify`, `fruitstand score` and `fruitstand data prepare` convert; the server reads only its
four formats. Pillow is imported inside the functions.
"""

import importlib.util
import io
import struct
from itertools import count
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

from fruitstand.contract import IMAGE_SUFFIXES, Preprocessing
from fruitstand.errors import ImageRejected
from fruitstand.images.header import read_header

if TYPE_CHECKING:
    from PIL.Image import Image

PILLOW_FORMATS = {
    "AVIF": "AVIF",
    "GIF": "GIF",
    "HEIF": "HEIC",
    "ICO": "ICO",
    "JPEG2000": "JPEG 2000",
    "TIFF": "TIFF",
}
"""Formats that are converted, with Pillow's name and ours; for others Pillow may start another program."""
CONVERTED_SUFFIXES = frozenset({".heic", ".heif", ".avif", ".tif", ".tiff", ".gif", ".jp2", ".ico"})
ICON_START = b"\0\0\1\0"
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1")
UNSUPPORTED = "unsupported format"
"""Start of the error messages after which a conversion is tried."""
_PNG_MODES = {"1": "1", "L": "L", "LA": "L", "La": "L", "P": "P", "PA": "RGB", "I;16": "I;16", "RGB": "RGB"}
_MEAN_MODES = {"1": "L", "P": "RGB"}
"""Modes that can hold a mean of pixels, for modes that cannot."""
_RGB_MODES = ("RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")


class Converted(NamedTuple):
    """A file in a format that the server reads."""

    content: bytes
    converted_from: str | None
    """The original format, and the factor if the picture was reduced; None if it was not converted."""


def is_image_name(name: str) -> bool:
    """Whether the suffix is that of an image that is read or converted."""
    return PurePath(name).suffix.lower() in IMAGE_SUFFIXES | CONVERTED_SUFFIXES


def as_supported(content: bytes, preprocessing: Preprocessing) -> Converted:
    """Return a file that the server reads: the same one, or a PNG converted from it.

    The PNG holds the first frame, upright, with unchanged pixels. Alpha and colour profiles are dropped, as
    the server drops those of PNG. If the PNG exceeds `max_encoded_bytes`, the picture is reduced by the
    smallest whole factor that makes it fit, by averaging pixels.

    The contract's limits are checked before anything is decoded.

    Raises:
        ImageRejected: not an image, too many pixels or bytes, damaged, or a format that is not converted.
    """
    try:
        read_header(content, preprocessing)
        return Converted(content, None)
    except ImageRejected as exc:
        if not str(exc).startswith(UNSUPPORTED):
            raise
        return _convert(content, preprocessing, exc)


def _convert(content: bytes, preprocessing: Preprocessing, refusal: ImageRejected) -> Converted:
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ModuleNotFoundError as exc:
        raise ImageRejected(f"{refusal}, or pip install 'fruitstand[classify]' to have it converted") from exc
    try:
        if content.startswith(ICON_START):
            _check_icon(content, preprocessing)
        with Image.open(io.BytesIO(content), formats=_known_formats()) as opened:
            name = PILLOW_FORMATS[opened.format or ""]
            _check_pixels(*opened.size, preprocessing)
            opened.load()
            upright = ImageOps.exif_transpose(opened)
            return _encode(_as_png_has_it(upright), name, preprocessing)
    except UnidentifiedImageError as exc:
        is_heic = content[4:8] == b"ftyp" and content[8:12] in HEIC_BRANDS and "HEIF" not in Image.OPEN
        hint = "; pip install pillow-heif to have HEIC converted" if is_heic else ""
        raise ImageRejected(f"{refusal}{hint}") from exc
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise ImageRejected(f"too many pixels: at most {preprocessing.max_pixels} are allowed") from exc
    except (OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, struct.error) as exc:
        raise ImageRejected("damaged or truncated: it cannot be decoded to be converted") from exc


def _known_formats() -> list[str]:
    """The `PILLOW_FORMATS` that this Pillow can read; HEIC needs pillow-heif."""
    from PIL import Image

    # pillow-heif is not a dependency: it is used if the user installed it.
    if importlib.util.find_spec("pillow_heif") is not None:
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    return [name for name in PILLOW_FORMATS if name in Image.OPEN]


def _check_icon(content: bytes, preprocessing: Preprocessing) -> None:
    """Check the size of each picture in an icon, because Pillow decodes the largest on opening the file."""
    (num_pictures,) = struct.unpack_from("<H", content, 4)
    for entry in range(6, 6 + 16 * num_pictures, 16):
        (at,) = struct.unpack_from("<I", content, entry + 12)
        is_png = content[at + 1 : at + 4] == b"PNG"
        width, height = struct.unpack_from(
            *((">II", content, at + 16) if is_png else ("<ii", content, at + 4))
        )
        _check_pixels(max(1, abs(width)), max(1, abs(height)), preprocessing)


def _check_pixels(width: int, height: int, preprocessing: Preprocessing) -> None:
    for wide, high in ((width, height), preprocessing.resized_size(width, height)):
        if wide * high > preprocessing.max_pixels:
            raise ImageRejected(
                f"too many pixels: {width} x {height}, at most {preprocessing.max_pixels} are allowed, before"
                " and after the resize"
            )


def _as_png_has_it(picture: "Image") -> "Image":
    """Convert to a mode that PNG stores losslessly and the server reads as the same colours."""
    if picture.mode in ("I;16B", "I;16L"):
        picture = picture.convert("I").convert("I;16")
    mode = "RGB" if picture.mode in _RGB_MODES else _PNG_MODES.get(picture.mode)
    if mode is None:
        raise ImageRejected(f"unsupported format: pixels of mode {picture.mode}; send 8 or 16 bits a channel")
    if picture.mode != mode:
        picture = picture.convert(mode)
    picture.info = {}  # Pillow would write the profile and the transparency into the PNG
    return picture


def _encode(picture: "Image", name: str, preprocessing: Preprocessing) -> Converted:
    from PIL.Image import Resampling

    whole = picture
    for factor in count(1):
        file = io.BytesIO()
        picture.save(file, "PNG", compress_level=1)
        if file.tell() <= preprocessing.max_encoded_bytes:
            return Converted(file.getvalue(), name if factor == 1 else f"{name}, reduced to 1/{factor}")
        whole = whole.convert(_MEAN_MODES.get(whole.mode, whole.mode))
        size = (max(1, whole.width // (factor + 1)), max(1, whole.height // (factor + 1)))
        picture = whole.resize(size, Resampling.BOX)
    raise AssertionError("a picture of one pixel is short enough")
