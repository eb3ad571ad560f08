"""Encoded images made by code, of every kind the decoders have to agree on."""

import numpy as np
from PIL import Image

from fruitstand.sample_images import encode, pattern, with_orientation

SIZES = (
    (100, 100), (99, 101), (120, 101), (97, 61), (150, 120), (200, 100), (201, 333), (333, 200),
    (100, 300), (512, 64), (640, 480), (64, 64), (224, 224), (1, 1),
)  # fmt: skip
"""Width and height, pixels."""
QUALITIES = (30, 60, 75, 85, 95, 100)


def supported_images() -> dict[str, bytes]:
    """More than 200 images by name: all formats, modes, sizes, aspect ratios, qualities, orientations."""
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
