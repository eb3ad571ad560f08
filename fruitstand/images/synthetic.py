"""Generate encoded images, small patterns and photograph-like ones, for gates, warm-up and health checks.

numpy and Pillow are imported inside the functions.
"""

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

from fruitstand.images.formats import png

if TYPE_CHECKING:
    from PIL import Image

EXIF_ORIENTATION = 0x0112

SIZES = (
    (100, 100), (99, 101), (120, 101), (97, 61), (150, 120), (200, 100), (201, 333), (333, 200),
    (100, 300), (512, 64), (640, 480), (64, 64), (224, 224), (1, 1),
)  # fmt: skip
"""Width and height, pixels."""
QUALITIES = (30, 60, 75, 85, 95, 100)
LARGEST = (2401, 1603)
"""Width and height, pixels; not multiples of the JPEG block size."""
_COARSEST_CELLS, _COARSEST_CONTRAST, _FALLOFF, _GRAIN = 4, 60.0, 0.62, 3.0


def pattern(width: int, height: int, mode: str = "RGB", *, phase: float = 0.0) -> "Image.Image":
    """Make a smooth colourful picture.

    Sizes are pixels, the mode is Pillow's. Each value of `phase` gives another picture.
    """
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:height, 0:width]
    channels = [
        127 + 100 * np.sin(x / 9 + y / 17 + phase),
        127 + 100 * np.cos(x / 13 - 2 * phase),
        (x + y + 40 * phase) % 256 * 0.9,
    ]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8)).convert(mode)


def encode(image: "Image.Image", image_format: str = "JPEG", **options: Any) -> bytes:
    """Encode a picture."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def with_orientation(
    orientation: int, size: tuple[int, int] = (150, 120), image_format: str = "JPEG"
) -> bytes:
    """Make an image file with an EXIF orientation, 1 to 8."""
    return encode(pattern(*size), image_format, exif=_exif(orientation))


def _exif(orientation: int) -> bytes:
    from PIL import Image

    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return exif.tobytes()


def supported_images() -> dict[str, bytes]:
    """Make over 200 images, keyed by name: all formats, modes, sizes, aspect ratios, qualities, orientations.

    All decoders must produce the same pixels from them, up to rounding.
    """
    import numpy as np
    from PIL import Image

    images = {}
    for number, (width, height) in enumerate(SIZES):
        name, picture = f"{width}x{height}", pattern(width, height, phase=number)
        for quality in QUALITIES:
            images[f"jpeg_{name}_q{quality}"] = encode(picture, quality=quality)
        images[f"jpeg_{name}_444"] = encode(picture, subsampling=0)
        images[f"jpeg_{name}_progressive"] = encode(picture, progressive=True)
        images[f"jpeg_{name}_grey"] = encode(picture.convert("L"))
        images[f"png_{name}"] = encode(picture, "PNG")
        images[f"webp_{name}"] = encode(picture, "WEBP")
        images[f"webp_{name}_lossless"] = encode(picture, "WEBP", lossless=True)
        images[f"bmp_{name}"] = encode(picture, "BMP")
    for size in ((150, 120), (100, 100), (90, 200)):
        for orientation in range(1, 9):
            name = f"jpeg_{size[0]}x{size[1]}_exif_{orientation}"
            images[name] = with_orientation(orientation, size)
    for mode in ("L", "P", "RGBA", "LA", "1"):
        images[f"png_{mode}"] = encode(pattern(150, 120, mode), "PNG")
    ramp = np.arange(15_000, dtype=np.uint16).reshape(100, 150) * 4
    images["png_16bit"] = encode(Image.fromarray(ramp), "PNG")
    images["jpeg_cmyk"] = encode(pattern(130, 100, "CMYK"))
    return images


def canary_image() -> bytes:
    """Make a grey PNG of 16 x 16 pixels, from which all decoders produce the same pixels."""
    side = 16
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)  # 8 bits per channel, RGB
    rows = zlib.compress((b"\0" + b"\x80" * 3 * side) * side)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return png.SIGNATURE + b"".join(png.chunk(kind, content) for kind, content in chunks)


def photograph(width: int, height: int, *, seed: int = 0) -> "Image.Image":
    """Make a picture with the frequency spectrum of natural photographs, and grain.

    Source:
        D. J. Field, Relations between the statistics of natural images and the response properties of
        cortical cells (1987): amplitude falls about as 1/frequency.
    """
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 120, np.float32)
    cells, contrast = _COARSEST_CELLS, _COARSEST_CONTRAST
    while cells < max(width, height):
        shape = (max(2, cells * height // width), max(2, cells * width // height), 3)
        coarse = random.normal(0, contrast, shape).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(coarse[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            picture[..., channel] += np.asarray(layer)
        cells, contrast = 2 * cells, _FALLOFF * contrast
    picture += random.normal(0, _GRAIN, (height, width, 1))
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def photographs() -> dict[str, bytes]:
    """Make large JPEGs, keyed by name: sizes, qualities, colour spaces, orientations."""
    whole = photograph(*LARGEST)
    part = whole.crop((0, 0, 1203, 901))
    images = {
        "largest": encode(whole, quality=92),
        "largest_turned": encode(whole, quality=92, exif=_exif(6)),
        "largest_progressive": encode(whole, quality=75, progressive=True),
        "tall": encode(whole.crop((900, 0, 1701, 1603)), quality=85, subsampling=0),
        "grey": encode(part.convert("L"), quality=92),
        "cmyk": encode(part.convert("CMYK"), quality=92),
    }
    for orientation in range(1, 9):
        images[f"turned_{orientation}"] = encode(part, quality=92, exif=_exif(orientation))
    return images
