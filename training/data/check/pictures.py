"""The pictures of a data check: class balance, and a sheet of samples for each class."""

from pathlib import Path

from PIL import Image, ImageDraw

from fruitstand.artefacts import atomic_file
from fruitstand.manifest import ManifestRow, PreparedData
from fruitstand.progress import track
from training.data.check.survey import Survey
from training.data.class_folders import SPLITS
from training.data.thumbnails import picture
from training.plots import plain, plt, save_figure

TILE = 80
"""Pixels."""
NUM_COLUMNS = 8
MAX_NAME_BYTES = 200
COLOURS = {"train": "tab:blue", "val": "tab:orange", "test": "tab:green"}


def plot_balance(path: Path, images_per_class: dict[str, dict[str, int]]) -> None:
    """Images of each class, the largest first."""
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
    """One PNG a class: a line of samples, spread over its films, for each split."""
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
        # Not every class name can be a file's.
        fits = "/" not in label and len(label.encode()) <= MAX_NAME_BYTES
        with atomic_file(directory / f"{label if fits else f'class {number}'}.png") as temporary:
            sheet.save(temporary, format="PNG")


def _spread(rows: list[ManifestRow]) -> list[ManifestRow]:
    count = min(NUM_COLUMNS, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]
