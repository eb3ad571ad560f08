"""The data manifest: one Parquet row per image, written by `fruitstand data prepare`.

A prepared folder holds `manifest.parquet`, `labels.txt`, `report.json` and `images/`. The metadata of the
Parquet file records how the images were split. pyarrow is imported inside the functions.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fruitstand.artefacts import atomic_file, read_json, sha256_file
from fruitstand.errors import DataError
from fruitstand.labels import read_labels

MANIFEST_NAME = "manifest.parquet"
LABELS_NAME = "labels.txt"
REPORT_NAME = "report.json"
METADATA_KEY = b"fruitstand.split"


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One image."""

    path: str
    """Relative to the prepared folder."""
    sha256: str
    """sha256 of the encoded file, hex."""
    label: str
    """Class name; its output index is its line in labels.txt."""
    object: str
    """The photographed object; in Fruits-360 the variety's folder."""
    film: str
    """The film that the frame belongs to; the prefix of the file name, or empty."""
    frame: int
    """Number of the frame in its film."""
    split: str
    """train, val or test."""


@dataclass(frozen=True, slots=True)
class PreparedData:
    """The content of a prepared folder."""

    directory: Path
    labels: list[str]
    rows: list[ManifestRow]
    source: str
    """"generated", or the name of the source folder, zip or data set."""
    manifest_sha256: str
    split_kind: str
    """What the split claims: classic, object, film or random; empty in manifests of old versions."""
    split_details: dict[str, Any]
    """How the split was made, see `training.data.splits`."""

    def split(self, name: str) -> list[ManifestRow]:
        """The rows of one split, in manifest order.

        Raises:
            DataError: the split is empty.
        """
        rows = [row for row in self.rows if row.split == name]
        if not rows:
            raise DataError(f"{self.directory}: the {name} split holds no image; prepare the data again")
        return rows

    def label_index(self) -> dict[str, int]:
        """Map class names to output indices."""
        return {label: index for index, label in enumerate(self.labels)}


def write_manifest(
    directory: Path, rows: list[ManifestRow], *, split_kind: str, split_details: dict[str, Any]
) -> None:
    """Write `manifest.parquet` atomically; `split_details` must be JSON-ready."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {str: pa.string(), int: pa.int64()}
    claim = json.dumps({"kind": split_kind, "details": split_details}, sort_keys=True).encode()
    schema = pa.schema(
        [(field.name, types[field.type]) for field in fields(ManifestRow)],  # type: ignore[index]
        metadata={METADATA_KEY: claim},
    )
    with atomic_file(directory / MANIFEST_NAME) as temporary:
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=schema), temporary)


def read_prepared(directory: Path) -> PreparedData:
    """Read a prepared folder.

    Raises:
        DataError: the manifest is missing, damaged, or does not match the labels.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = directory / MANIFEST_NAME
    if not path.is_file():
        raise DataError(
            f"{directory}: no {MANIFEST_NAME} in it; make one with"
            f" 'fruitstand data prepare --source PATH --out {directory}'"
        )
    try:
        table = pq.read_table(path)
        rows = [ManifestRow(**row) for row in table.to_pylist()]
        claim = json.loads((table.schema.metadata or {}).get(METADATA_KEY, b'{"kind": "", "details": {}}'))
        split_kind, split_details = claim["kind"], claim["details"]
    except (pa.ArrowException, OSError, TypeError, ValueError, KeyError) as exc:
        raise DataError(f"{path}: damaged or of another version ({exc}); prepare the data again") from exc
    labels = read_labels(directory / LABELS_NAME)
    unknown = {row.label for row in rows} - set(labels)
    if unknown:
        raise DataError(f"{path}: label {min(unknown)!r} is not in {LABELS_NAME}; prepare the data again")
    source = str(read_json(directory / REPORT_NAME)["source"])
    return PreparedData(directory, labels, rows, source, sha256_file(path), split_kind, split_details)
