"""A contact sheet: thumbnails with their predictions in one image."""

import io
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fruitstand.artefacts import atomic_file
from fruitstand.errors import UsageError
from fruitstand_client.command.sources import Source
from fruitstand_client.images import read_image
from fruitstand_client.prediction import NOT_KNOWN, Prediction

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageDraw import ImageDraw as Drawing
    from PIL.ImageFont import BaseImageFont as Font

MAX_PICTURES = 200
"""Most images on a sheet."""
SIDE = 120
TEXT_HEIGHT = 50
COLUMNS = 8
_DAMAGED = (OSError, ValueError, SyntaxError, struct.error, EOFError)  # errors that Pillow raises
GREY, GREEN, AMBER, RED = (128, 128, 128), (20, 90, 40), (150, 90, 0), (170, 30, 30)


class ContactSheet:
    """Collects the first images of a run and their predictions."""

    def __init__(self, path: Path) -> None:
        """Prepare a sheet that will be written to `path`.

        Raises:
            UsageError: Pillow is missing, or it knows no image format of that name.
        """
        try:
            from PIL import Image as pillow
        except ModuleNotFoundError as exc:
            raise UsageError("--sheet needs Pillow: pip install 'fruitstand[classify]'") from exc
        self._pillow = pillow
        self._path = path
        self._format = pillow.registered_extensions().get(path.suffix.lower(), "")
        if self._format not in pillow.SAVE:
            raise UsageError(f"--sheet: got {path.name}, expected an image's name such as sheet.png")
        self._pictures: list[Picture | None] = []
        self._predictions: list[Prediction] = []

    def watch(self, images: Iterable[Source]) -> Iterator[Source]:
        """Pass images through, and keep thumbnails of the first ones."""
        for image in images:
            if len(self._pictures) >= MAX_PICTURES:
                yield image
                continue
            read = read_image(image)
            self._pictures.append(thumbnail(read.content))
            yield read

    def add(self, prediction: Prediction) -> None:
        """Add a prediction; predictions must come in the order of the images."""
        if len(self._predictions) < MAX_PICTURES:
            self._predictions.append(prediction)

    def save(self) -> None:
        """Write the sheet."""
        from PIL import ImageDraw, ImageFont

        num_rows = -(-len(self._predictions) // COLUMNS)
        columns = min(COLUMNS, max(1, len(self._predictions)))
        sheet = self._pillow.new("RGB", (columns * SIDE, max(1, num_rows) * (SIDE + TEXT_HEIGHT)), "white")
        draw = ImageDraw.Draw(sheet)
        font = ImageFont.load_default(12)
        for number, prediction in enumerate(self._predictions):
            left, top = number % COLUMNS * SIDE, number // COLUMNS * (SIDE + TEXT_HEIGHT)
            picture = self._pictures[number]
            if picture is None:
                draw.rectangle((left + 6, top + 6, left + SIDE - 7, top + SIDE - 7), outline=GREY)
                draw.line((left + 6, top + 6, left + SIDE - 7, top + SIDE - 7), fill=GREY)
            else:
                sheet.paste(picture, (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2))
            if not prediction.is_known:
                words, last, colour = NOT_KNOWN, f"known {prediction.known:.3f}", AMBER
            elif prediction.error is None:
                words, last, colour = prediction.label or "", f"{prediction.probability:.3f}", GREEN
            else:
                words, last, colour = prediction.error, "no answer", RED
            for row, line in enumerate((*_two_lines(words, draw, font), last)):
                draw.text((left + 3, top + SIDE + 15 * row), line, fill=colour, font=font)
        with atomic_file(self._path) as temporary:
            sheet.save(temporary, self._format)


def thumbnail(content: bytes) -> "Picture | None":
    """A thumbnail of an encoded image; None if Pillow cannot read it."""
    from PIL import Image as pillow

    try:
        with pillow.open(io.BytesIO(content)) as opened:
            picture = opened.convert("RGB")
    except (*_DAMAGED, pillow.DecompressionBombError):
        return None
    picture.thumbnail((SIDE - 8, SIDE - 8))
    return picture


def _two_lines(text: str, draw: "Drawing", font: "Font") -> list[str]:
    """The text below a picture, broken where it gets too wide and cut off after the second line."""

    def fits(line: str) -> bool:
        return bool(draw.textlength(line, font) <= SIDE - 6)

    lines: list[str] = []
    while text and len(lines) < 2:
        end = next(end for end in range(len(text), 0, -1) if fits(text[:end]) or end == 1)
        if end < len(text) and not lines and (blank := text.rfind(" ", 0, end + 1)) > 0:
            end = blank
        lines.append(text[:end])
        text = text[end:].lstrip()
    if text:
        lines[-1] = f"{lines[-1][:-1]}…"
    return lines
