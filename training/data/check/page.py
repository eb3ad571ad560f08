"""Write what `fruitstand data check` shows: the HTML page, the class-balance plot, and sheets of samples.

`page.html.jinja` holds the page's text. The pictures are inside the page, so it can be sent as one file.
"""

import io
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image, ImageDraw

from fruitstand.artefacts import atomic_file
from fruitstand.html_page import image_url
from fruitstand.manifest import ManifestRow, PreparedData
from fruitstand.progress import track
from training.data.check.survey import Survey
from training.data.class_folders import SPLITS
from training.data.thumbnails import picture
from training.plots import plain, plt, save_figure

MAX_PAIRS = 24
MAX_ODD = 48
PICTURE_SIDE = 120
"""Pixels."""

TILE = 80
"""Pixels."""
NUM_COLUMNS = 8
MAX_NAME_BYTES = 200
COLOURS = {"train": "tab:blue", "val": "tab:orange", "test": "tab:green"}


def render_page(result: dict[str, Any], data: PreparedData, balance_png: bytes) -> str:
    """Render the HTML page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    files = result["files"]
    twins = [
        _figure(twin["example"], f"{' = '.join(twin['objects'])}: {max(twin['shares']):.0%} of one; ")
        for twin in result["twin_objects"][:MAX_PAIRS]
    ]
    return environment.get_template("page.html.jinja").render(
        result=result,
        splits=SPLITS,
        twins=twins,
        leaks=[_figure(example) for example in result["closest_leaks"][:MAX_PAIRS]],
        odd=[
            {"files": [one["file"]], "caption": one["reason"]}
            for one in (files["odd"] + files["damaged"])[:MAX_ODD]
        ],
        picture=lambda file: _picture(data.directory / file),
        balance=image_url(balance_png, "png"),
    )


def _figure(example: dict[str, Any], caption: str = "") -> dict[str, Any]:
    """Two images and what is written below them."""
    numbers = f"{example['distance_bits']} bits, {example['difference_levels']} levels"
    return {"files": example["files"], "caption": caption + numbers}


def _picture(path: Path) -> str:
    """A small JPEG as a data URL; empty if the file cannot be decoded."""
    buffer = io.BytesIO()
    try:
        picture(path, PICTURE_SIDE).save(buffer, format="JPEG", quality=85)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    return image_url(buffer.getvalue(), "jpeg")


def plot_balance(path: Path, images_per_class: dict[str, dict[str, int]]) -> None:
    """Plot the number of images of each class, the largest class first."""
    labels = sorted(images_per_class, key=lambda label: -sum(images_per_class[label].values()))
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.16 * len(labels)), layout="constrained")
    left = [0] * len(labels)
    for split in SPLITS:
        counts = [images_per_class[label][split] for label in labels]
        axes.barh(range(len(labels)), counts, left=left, label=split, color=COLOURS[split])
        left = [start + count for start, count in zip(left, counts, strict=True)]
    axes.set_yticks(range(len(labels)), [plain(label) for label in labels], fontsize=7)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set(xlabel="images")
    axes.legend(loc="lower right")
    axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def write_sheets(directory: Path, data: PreparedData, seen: Survey) -> None:
    """Write one PNG per class: a row of samples for each split, spread over the class's films."""
    members: dict[str, dict[str, list[ManifestRow]]] = {
        label: {split: [] for split in SPLITS} for label in data.labels
    }
    for row, look in zip(data.rows, seen.looks, strict=True):
        if look is not None:
            members[row.label][row.split].append(row)
    for number, label in enumerate(track(data.labels, total=len(data.labels), description="sheets")):
        sheet = Image.new("RGB", (NUM_COLUMNS * TILE, len(SPLITS) * TILE), "white")
        for line, split in enumerate(SPLITS):
            for column, row in enumerate(_spread(members[label][split])):
                sheet.paste(picture(data.directory / row.path, TILE), (column * TILE, line * TILE))
            ImageDraw.Draw(sheet).text((2, line * TILE), split, "black")
        # A class name may hold a slash or be too long for a file name.
        fits = "/" not in label and len(label.encode()) <= MAX_NAME_BYTES
        with atomic_file(directory / f"{label if fits else f'class {number}'}.png") as temporary:
            sheet.save(temporary, format="PNG")


def _spread(rows: list[ManifestRow]) -> list[ManifestRow]:
    count = min(NUM_COLUMNS, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]
