"""Pictures of the size and the texture of photographs, painted by code: for the gates of large JPEGs."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

EXIF_ORIENTATION = 0x0112
LARGEST = (2401, 1603)
"""Width and height, pixels; like the others no multiple of a JPEG's blocks."""
_COARSEST_CELLS, _COARSEST_CONTRAST, _FALLOFF, _GRAIN = 4, 60.0, 0.62, 3.0


def photograph(width: int, height: int, *, seed: int = 0) -> "Image.Image":
    """A picture with structure of every size, whose contrast falls with the size as in nature, and grain.

    Args:
        width: pixels.
        height: pixels.
        seed: others give other pictures.

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
    """Large JPEGs by name: sizes, qualities, colour spaces, turned and upright."""
    whole = photograph(*LARGEST)
    part = whole.crop((0, 0, 1203, 901))
    images = {
        "largest": _jpeg(whole),
        "largest_turned": _jpeg(whole, exif=_turned(6)),
        "largest_progressive": _jpeg(whole, quality=75, progressive=True),
        "tall": _jpeg(whole.crop((900, 0, 1701, 1603)), quality=85, subsampling=0),
        "grey": _jpeg(part.convert("L")),
        "cmyk": _jpeg(part.convert("CMYK")),
    }
    for orientation in range(1, 9):
        images[f"turned_{orientation}"] = _jpeg(part, exif=_turned(orientation))
    return images


def _turned(orientation: int) -> bytes:
    from PIL import Image

    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return exif.tobytes()


def _jpeg(picture: "Image.Image", *, quality: int = 92, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, **options)
    return file.getvalue()
