"""`fruitstand classify --explain DIR`: a picture of each image with its heat map and similar training images.

Violet marks the parts that support the label; below are the five nearest training images.
"""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fruitstand.artefacts import write_bytes
from fruitstand.errors import UsageError
from fruitstand_client.client import Client
from fruitstand_client.command.sources import Source
from fruitstand_client.errors import ImageRejected, ModelNotFound
from fruitstand_client.explanation import Crop, Explanation, Neighbour
from fruitstand_client.images import read_image

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SIDE, GAP, LINE = 80, 8, 15
"""Of a neighbour's picture, between two, and of a line of text, pixels."""
WIDTH = 5 * (SIDE + GAP) + GAP
TINT, STRENGTH = (140, 40, 255), 0.7
"""Of what speaks for the answer: no fruit is violet."""
BLACK, GREY, RED = (30, 30, 30), (110, 110, 110), (170, 30, 30)


def explain_each(images: Iterable[Source], client: Client, directory: Path) -> Iterator[Source]:
    """Pass the images through, and write a PNG for each that the server does not reject.

    The folder is created if it is missing; existing files are replaced.

    Raises:
        UsageError: Pillow is missing, or the server has no explainer.
        RequestFailed: the server did not answer.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as exc:
        raise UsageError("--explain needs Pillow: pip install 'fruitstand[classify]'") from exc
    directory.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        read = read_image(image)
        try:
            explanation = client.explain(read)
        except ModelNotFound as exc:
            raise UsageError(
                "--explain: the server has no explainer; publish a version with 'fruitstand export --explain'"
            ) from exc
        except ImageRejected:  # its row says why
            yield read
            continue
        with Image.open(io.BytesIO(read.content)) as opened:
            picture = draw(opened, explanation)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        write_bytes(directory / f"{number:05}-{Path(read.name).stem or 'image'}.png", buffer.getvalue())
        yield read


def draw(opened: "Picture", explanation: Explanation) -> "Picture":
    """Draw one explanation."""
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    image = ImageOps.exif_transpose(opened).convert("RGB")
    scale = (WIDTH - 3 * GAP) / 2 / image.width
    image = image.resize((round(scale * image.width), max(1, round(scale * image.height))))
    top = LINE + 2 * GAP
    below = top + image.height + GAP
    sheet = Image.new("RGB", (WIDTH, below + LINE + SIDE + 3 * LINE + 2 * GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    label, probability = explanation.ranked[0]
    pen.text((GAP, GAP), f"{label} {probability:.3f}", BLACK, font)
    sheet.paste(image, (GAP, top))
    marked = tinted(np.asarray(image), explanation.activations[0], explanation.crop)
    sheet.paste(Image.fromarray(marked), (2 * GAP + image.width, top))
    pen.text((GAP, below), "nearest training images", GREY, font)
    for number, one in enumerate(explanation.neighbours):
        left = GAP + number * (SIDE + GAP)
        with Image.open(io.BytesIO(one.picture)) as small:
            sheet.paste(ImageOps.contain(small.convert("RGB"), (SIDE, SIDE)), (left, below + LINE + GAP))
        for row, (line, colour) in enumerate(_words(one)):
            while line and pen.textlength(line, font) > SIDE:
                line = line[:-2] + "…" if len(line) > 2 else ""
            pen.text((left, below + LINE + GAP + SIDE + row * LINE), line, colour, font)
    return sheet


def tinted(
    pixels_hwc_u8: NDArray[np.uint8], activation: NDArray[np.float32], crop: Crop
) -> NDArray[np.uint8]:
    """Tint the image violet where it supports the label.

    Args:
        pixels_hwc_u8: (H, W, 3) RGB.
        activation: (h, w), 0 to 1.
        crop: the part of the image that the map covers.
    """
    from PIL import Image

    height, width = pixels_hwc_u8.shape[:2]
    left, top, right, bottom = crop.box(width, height)
    covered = Image.fromarray(activation).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
    strength = np.zeros((height, width, 1), np.float32)
    strength[top:bottom, left:right, 0] = STRENGTH * np.asarray(covered)
    mixed = pixels_hwc_u8 * (1 - strength) + np.array(TINT, np.float32) * strength
    result: NDArray[np.uint8] = mixed.astype(np.uint8)
    return result


def _words(one: Neighbour) -> list[tuple[str, tuple[int, int, int]]]:
    words = [(one.label, BLACK), (f"{one.similarity:.3f} alike", GREY)]
    return [*words, ("in training", RED)] if one.is_nearly_identical else words
