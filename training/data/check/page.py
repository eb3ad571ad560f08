"""What a data check shows: an HTML page with the pictures inside, class balance, sheets of samples."""

import io
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from fruitstand.artefacts import atomic_file
from fruitstand.html_page import html_page, image_url
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
    """The page.

    Args:
        result: what `check.json` holds.
        data: the folder it was found in; the pictures come from there.
        balance_png: the plot of the class balance.
    """
    verdict = (
        '<p class="verdict ok">Files and split are what they claim to be.</p>'
        if result["ok"]
        else '<p class="verdict bad">Not what it claims to be:</p>' + _lines(result["failures"])
    )
    files = result["files"]
    parts = [
        verdict,
        _lines(result["summary"]),
        f"<p><small>manifest {escape(result['manifest_sha256'])}</small></p>",
        _splits(result),
        "<h2>The same fruit under two names</h2>",
        _twins(result["twin_objects"], data),
        "<h2>Test images and what is nearest to them in Training or validation</h2>",
        "<p>The closest pair of each variety: bits of 64 in which the dHashes differ, mean difference in"
        " levels of 255.</p>",
        _pairs([(example, _numbers(example)) for example in result["closest_leaks"]], data),
        "<h2>Odd and damaged files</h2>",
        _odd(files["odd"] + files["damaged"], files["num_odd"] + files["num_damaged"], data),
        "<h2>Files</h2>",
        _table("size", files["sizes"]),
        _table("mode", files["modes"]),
        _table("format", files["formats"]),
        _table("bytes", files["bytes"]),
        "<h2>Class balance</h2>",
        f'<img class="plot" alt="images of each class" src="{image_url(balance_png, "png")}">',
    ]
    title = f"Data check: {result['source']}, split {result['split_kind']}"
    return html_page(title, "\n".join(parts))


def _lines(lines: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _table(head: str, counts: dict[str, Any]) -> str:
    rows = "".join(
        f'<tr><td>{escape(key)}</td><td class="n">{value}</td></tr>' for key, value in counts.items()
    )
    return f"<table><tr><th>{escape(head)}</th><th></th></tr>{rows}</table>"


def _splits(result: dict[str, Any]) -> str:
    near, exact = result["near_duplicates"]["num_pairs"], result["exact_duplicates"]["shared"]
    rows = "".join(
        f'<tr><td>{pair}</td><td class="n">{result["shared_objects"][pair]["num"]}</td>'
        f'<td class="n">{result["shared_films"][pair]["num"]}</td><td class="n">{exact[pair]}</td>'
        f'<td class="n">{near[pair]}</td></tr>'
        for pair in exact
    )
    counts = ", ".join(f"{split} {count}" for split, count in result["num_images"].items())
    inside = ", ".join(f"{split} {near[f'{split}/{split}']}" for split in SPLITS)
    return (
        f"<h2>Within and between the splits</h2><p>{escape(counts)} images;"
        f" {result['num_objects']} varieties, {result['num_films']} films.</p>"
        f"<table><tr><th>shared</th><th>varieties</th><th>films</th>"
        f"<th>files</th><th>near-duplicate pairs</th></tr>{rows}</table>"
        f"<p>Near-duplicate pairs inside a split: {inside}.</p>"
    )


def _twins(twins: list[dict[str, Any]], data: PreparedData) -> str:
    return _pairs(
        [
            (
                twin["example"],
                f"{' = '.join(twin['objects'])}: {max(twin['shares']):.0%} of one;"
                f" {_numbers(twin['example'])}",
            )
            for twin in twins
        ],
        data,
    )


def _numbers(example: dict[str, Any]) -> str:
    return f"{example['distance_bits']} bits, {example['difference_levels']} levels"


def _pairs(pairs: list[tuple[dict[str, Any], str]], data: PreparedData) -> str:
    if not pairs:
        return "<p>None.</p>"
    figures = "".join(
        f"<figure>{''.join(_picture(data.directory / file) for file in example['files'])}"
        f"<figcaption>{'<br>'.join(escape(file) for file in example['files'])}<br>{escape(text)}"
        "</figcaption></figure>"
        for example, text in pairs[:MAX_PAIRS]
    )
    return f'<div class="pairs">{figures}</div>{_more(len(pairs), MAX_PAIRS)}'


def _odd(odd: list[dict[str, str]], total: int, data: PreparedData) -> str:
    if not odd:
        return "<p>None.</p>"
    figures = "".join(
        f"<figure>{_picture(data.directory / one['file'])}"
        f"<figcaption>{escape(one['file'])}<br>{escape(one['reason'])}</figcaption></figure>"
        for one in odd[:MAX_ODD]
    )
    return f'<div class="pairs">{figures}</div>{_more(total, MAX_ODD)}'


def _more(total: int, shown: int) -> str:
    return f"<p>{total - shown} more in check.json.</p>" if total > shown else ""


def _picture(path: Path) -> str:
    """An `img` element, or words where there is no picture to show."""
    buffer = io.BytesIO()
    try:
        picture(path, PICTURE_SIDE).save(buffer, format="JPEG", quality=85)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "<em>no picture</em>"
    return f'<img alt="" src="{image_url(buffer.getvalue(), "jpeg")}">'


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
