"""Find the images listed in a CSV, TSV, JSON-lines or Parquet table, with a path and a label in each row.

Source:
    Hugging Face datasets, `imagefolder`: `metadata.csv`, `.jsonl` or `.parquet` beside the images, with the
    column `file_name` relative to it.
"""

import csv
import io
import json
import os
from pathlib import PurePosixPath
from typing import Any

from fruitstand.errors import DataError
from training.data.class_folders import SPLIT_FOLDERS, FoundImage, film_and_frame, order
from training.data.file_tree import FolderTree, Listing, ZipTree

PATH_COLUMNS = ("file_name", "path", "filename", "file", "filepath", "image_path", "image")
LABEL_COLUMNS = ("label", "class", "category", "target", "label_name", "class_name")
SUFFIXES = {".csv", ".tsv", ".jsonl", ".parquet"}
MAX_BYTES = 1 << 30


def find_tables(tree: FolderTree | ZipTree, listing: Listing) -> list[str]:
    """Find the `imagefolder` tables of a tree."""
    names = {f"metadata{suffix}" for suffix in SUFFIXES}
    tables = sorted(name for name in listing.files if os.path.basename(name) in names)
    return [name for name in tables if "file_name" in next(iter(_read(tree, name)), {})]


def find_listed(tree: FolderTree | ZipTree, tables: list[str]) -> list[FoundImage]:
    """Read the images of tables, ordered by split, object, film and frame.

    The split is the row's value in a column `split`, else the name of a folder in the image's path (train,
    val or test in any spelling), else train.

    Raises:
        DataError: a table is damaged or lacks a column, or a row is invalid.
    """
    found: dict[str, FoundImage] = {}
    for table in tables:
        rows = _read(tree, table)
        if not rows:
            raise DataError(f"{table}: has no rows; expected the header path,label and a row for each image")
        path_column, label_column = _columns(table, list(rows[0]))
        for number, row in enumerate(rows, start=1):
            where = f"{table}, row {number}"
            name, label = row.get(path_column), row.get(label_column)
            if not isinstance(name, str) or not name or isinstance(label, dict | list | None):
                raise DataError(f"{where}: expected a path and a label, got {name!r:.80} and {label!r:.80}")
            name = os.path.normpath(os.path.join(os.path.dirname(table), name.replace("\\", "/")))
            image = _image(name, str(label), str(row.get("split") or ""), where)
            if image.relative in found:
                raise DataError(f"{where}: {image.relative} is listed twice; list each image once")
            found[image.relative] = image
    return sorted(found.values(), key=order)


def _image(name: str, label: str, split: str, where: str) -> FoundImage:
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..")]
    if split and split.lower() not in SPLIT_FOLDERS:
        raise DataError(f"{where}: split {split!r}, allowed {', '.join(SPLIT_FOLDERS)}")
    named = (SPLIT_FOLDERS[part.lower()] for part in (split, *parts[:-1]) if part.lower() in SPLIT_FOLDERS)
    film, frame = film_and_frame(PurePosixPath(name).stem, numbered=True)
    film = "/".join((*parts[:-1], film))
    return FoundImage(name, "/".join(parts), label, label, film, frame, next(named, "train"))


def _columns(table: str, names: list[str]) -> tuple[str, str]:
    """Names of the path column and the label column."""
    path = next((name for name in PATH_COLUMNS if name in names), None)
    others = [name for name in names if name not in (path, "split")]
    label = next((name for name in LABEL_COLUMNS if name in names), others[0] if len(others) == 1 else None)
    if path is None or label is None:
        raise DataError(
            f"{table}: its columns are {', '.join(map(repr, names))}; expected path (or file_name)"
            " and label, and optionally split"
        )
    return path, label


def _read(tree: FolderTree | ZipTree, table: str) -> list[dict[str, Any]]:
    """Read a table's rows. CSV values stay strings, so labels keep leading zeros."""
    try:
        content = tree.read(table, MAX_BYTES)
        if table.endswith(".parquet"):
            import pyarrow.parquet as pq

            return list(pq.read_table(io.BytesIO(content)).to_pylist())
        text = content.decode("utf-8-sig")
        if table.endswith(".jsonl"):
            return [dict(json.loads(line)) for line in text.split("\n") if line.strip()]
        delimiter = "\t" if table.endswith(".tsv") else ","
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except (ValueError, TypeError, OSError, csv.Error) as exc:  # pyarrow raises subclasses of these
        raise DataError(f"{table}: not a readable {table.rpartition('.')[2]} table ({exc})") from exc
