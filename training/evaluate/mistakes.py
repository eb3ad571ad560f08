"""A contact sheet of the images that a classifier gets wrong, with truth, answer and confidence."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from fruitstand.artefacts import atomic_file
from training.data.thumbnails import picture

NUM_COLUMNS = 8
NUM_LINES = 6
TILE_WIDTH, PICTURE_SIDE, LINE_HEIGHT = 150, 112, 15
"""Pixels."""
MAX_LETTERS = 24


@dataclass(frozen=True, slots=True)
class Mistake:
    """One misclassified image."""

    path: str
    """Relative to the prepared folder."""
    object: str
    truth: str
    answer: str
    confidence: float
    """Probability of the answer, 0 to 1."""
    is_known: bool = True
    """Whether the image shows a known class; True if nobody says."""


def write_mistake_sheet(path: Path, directory: Path, mistakes: Sequence[Mistake], title: str) -> None:
    """Write the contact sheet."""
    shown = _spread(mistakes)[: NUM_COLUMNS * NUM_LINES]
    height = PICTURE_SIDE + 3 * LINE_HEIGHT + 10
    lines = max(1, -(-len(shown) // NUM_COLUMNS))
    sheet = Image.new("RGB", (NUM_COLUMNS * TILE_WIDTH, 34 + lines * height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 11)
    draw.text((8, 10), f"{title}: {_count(len(shown), len(mistakes))}", "black", font.font_variant(size=14))
    for number, one in enumerate(shown):
        left, top = number % NUM_COLUMNS * TILE_WIDTH, 34 + number // NUM_COLUMNS * height
        small = picture(directory / one.path, PICTURE_SIDE)
        sheet.paste(small, (left + (TILE_WIDTH - small.width) // 2, top))
        words = (
            (_short(f"is {one.truth}"), "#176b2c"),
            (_short(f"not {one.answer}"), "#a4161a"),
            (f"at {one.confidence:.3f}" + ("" if one.is_known else ", not known"), "#444444"),
        )
        for line, (text, colour) in enumerate(words):
            draw.text((left + 6, top + PICTURE_SIDE + 4 + line * LINE_HEIGHT), text, colour, font)
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG")


def _spread(mistakes: Sequence[Mistake]) -> list[Mistake]:
    """Order by rank within the object, so that one bad object does not fill the sheet."""
    met: Counter[str] = Counter()
    ranked = []
    for one in mistakes:
        ranked.append((met[one.object], one))
        met[one.object] += 1
    return [one for _, one in sorted(ranked, key=lambda pair: pair[0])]


def _count(num_shown: int, num: int) -> str:
    if num == 0:
        return "no mistakes"
    return f"{num} mistakes" + (
        f", the most confident {num_shown} are shown, taking turns between objects" if num_shown < num else ""
    )


def _short(text: str) -> str:
    return text if len(text) <= MAX_LETTERS else text[: MAX_LETTERS - 1] + "…"
