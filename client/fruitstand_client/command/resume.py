"""An output file that an interrupted run leaves as OUT.partial, and that the next run goes on with.

A row is whole when its newline is there; a run that was killed leaves at most one torn row at the end, which
is cut. Rows stand in the order of the inputs, so n rows mean that the first n inputs are done; that they are
still the same inputs is checked by their names.
"""

import csv
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from fruitstand.artefacts import fsync_path
from fruitstand.errors import UsageError
from fruitstand_client.command.output import CSV_COLUMNS, TextRows, escaped
from fruitstand_client.command.sources import Source
from fruitstand_client.images import image_name
from fruitstand_client.prediction import Prediction

RESUMED_FORMATS = ("jsonl", "csv")


class WrittenRow(NamedTuple):
    """A whole row of an output file."""

    path: str
    failed: bool
    end: int
    """Offset of the byte after it."""


class PartialRows:
    """The rows of a run that may be interrupted."""

    def __init__(self, path: Path, output_format: str, file: IO[bytes]) -> None:
        """Go on with what is in `file`, its torn end cut off."""
        self._file = file
        self.num_done = 0
        """Inputs that have a row from an earlier run."""
        self.num_failed = 0
        """Of these, the ones without an answer."""
        end = 0
        for row in written_rows(path, output_format):
            self.num_done += 1
            self.num_failed += row.failed
            end = row.end
        file.truncate(end)
        self._rows = TextRows(file, output_format, header=end == 0)

    def write(self, prediction: Prediction) -> None:
        """One row; it is the kernel's at once, and survives this process."""
        self._rows.write(prediction)
        self._file.flush()


@contextmanager
def open_partial(output_format: str, out: Path, *, resume: bool) -> Iterator[PartialRows]:
    """Rows that are kept in OUT.partial until all are there, and then become OUT.

    Args:
        output_format: one of `RESUMED_FORMATS`.
        out: the file.
        resume: go on with an OUT.partial that is there.

    Raises:
        UsageError: there is one, and it is not to be resumed; or another run writes to it.
    """
    path = partial_path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise UsageError(f"{path}: another run writes to it; choose another --out") from exc
        if not resume and path.stat().st_size:
            raise UsageError(
                f"{path}: left by a run that was interrupted; go on with --resume, or remove it to start anew"
            )
        yield PartialRows(path, output_format, file)
        file.flush()
        os.fsync(file.fileno())
        os.replace(path, out)
    fsync_path(out.parent)


def skip_done(path: Path, output_format: str, images: Iterable[Source]) -> Iterator[Source]:
    """Those of a run's inputs that have no row in `path` yet.

    Raises:
        UsageError: a row is of another input: they changed since.
    """
    remaining = iter(images)
    for number, row in enumerate(written_rows(path, output_format), 1):
        image = next(remaining, None)
        name = "nothing" if image is None else escaped(image_name(image))
        if name != row.path:
            raise UsageError(
                f"{path}: row {number} is of {row.path}, and that input is {name} now; give the same images,"
                " or remove the file to start anew"
            )
    yield from remaining


def partial_path(out: Path) -> Path:
    """Where the rows of a run are until all are there."""
    return out.with_name(f"{out.name}.partial")


def written_rows(path: Path, output_format: str) -> Iterator[WrittenRow]:
    """The whole rows of a file up to the first that is torn."""
    with path.open("rb") as file:
        end = 0
        record = b""
        for line in file:
            record += line
            # In CSV a quoted path may hold a newline; inside of one the number of quotes is odd.
            if not record.endswith(b"\n") or (output_format == "csv" and record.count(b'"') % 2):
                continue
            end += len(record)
            try:
                text = record.decode()
                if output_format == "jsonl":
                    row = json.loads(text)
                    yield WrittenRow(escaped(row["path"]), row["error"] is not None, end)
                else:
                    (cells,) = csv.reader([text])
                    if len(cells) != len(CSV_COLUMNS) or "\0" in text:
                        return
                    if cells != list(CSV_COLUMNS):
                        yield WrittenRow(cells[0], bool(cells[-1]), end)
            except (ValueError, KeyError, TypeError):
                return
            record = b""
