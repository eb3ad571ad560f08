"""Write predictions as a table, JSON lines, CSV or parquet, row by row.

An interrupted run leaves its JSON lines or CSV as OUT.partial, and the next run continues it. A row is
complete if it ends with a newline; a killed run leaves at most one incomplete row, which is removed. Rows
are in the order of the inputs, so n rows mean that the first n inputs are done. Their names are compared
with the inputs of the new run.
"""

import csv
import fcntl
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from fruitstand.artefacts import atomic_file, fsync_path
from fruitstand.errors import UsageError
from fruitstand_client.command.sources import Source
from fruitstand_client.images import image_name
from fruitstand_client.prediction import NOT_KNOWN, Prediction

FORMATS = ("table", "jsonl", "csv", "parquet")
RESUMED_FORMATS = ("jsonl", "csv")
COLUMNS = (
    *("path", "label", "probability", "top_k", "known", "label_set"),
    *("model_version", "converted_from", "error"),
)
TABLE_WIDTHS = (24, 6)


class TextRows:
    """Writes rows as lines of UTF-8; bytes of a path that are not UTF-8 are escaped."""

    def __init__(self, file: IO[bytes], output_format: str, *, header: bool = True) -> None:
        """Write to an open file; starts with the header if the format has one."""
        self._file = file
        self._line = {"table": _table_line, "jsonl": _jsonl_line, "csv": _csv_line}[output_format]
        if header and output_format == "csv":
            self._put(_csv_row(COLUMNS))
        elif header and output_format == "table":
            self._put(f"{'label':{TABLE_WIDTHS[0]}}  {'prob':{TABLE_WIDTHS[1]}}  image  [next]\n")

    def write(self, prediction: Prediction) -> None:
        """One line."""
        self._put(self._line(prediction))

    def _put(self, line: str) -> None:
        self._file.write(line.encode("utf-8", "backslashreplace"))


class ParquetRows:
    """Writes rows to parquet in groups of `GROUP_ROWS`."""

    GROUP_ROWS = 10_000

    def __init__(self, path: Path) -> None:
        """Open a parquet file.

        Raises:
            UsageError: pyarrow is missing.
        """
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ModuleNotFoundError as exc:
            raise UsageError("--format parquet needs pyarrow: pip install 'fruitstand[classify]'") from exc

        rank = pa.struct([("label", pa.string()), ("probability", pa.float32())])
        others = {
            **dict.fromkeys(("probability", "known"), pa.float32()),
            "top_k": pa.list_(rank),
            "label_set": pa.list_(pa.string()),
        }
        self._schema = pa.schema([(name, others.get(name, pa.string())) for name in COLUMNS])
        self._writer = pq.ParquetWriter(path, self._schema)
        self._rows: list[dict[str, object]] = []

    def write(self, prediction: Prediction) -> None:
        """One row."""
        row = prediction.to_dict()
        row["path"] = escaped(prediction.path)
        self._rows.append(row)
        if len(self._rows) == self.GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        """Write the remaining rows and the end of the file."""
        if self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


def escaped(path: str) -> str:
    """A path for output, with bytes that are not UTF-8 escaped."""
    return path.encode("utf-8", "backslashreplace").decode()


@contextmanager
def open_rows(output_format: str, out: Path | None) -> Iterator[TextRows | ParquetRows]:
    """Open an output for rows: stdout, or a file that appears whole or not at all."""
    if out is None:
        yield TextRows(sys.stdout.buffer, output_format)
        sys.stdout.buffer.flush()
        return
    with atomic_file(out) as temporary:
        if output_format == "parquet":
            with closing(ParquetRows(temporary)) as parquet:
                yield parquet
        else:
            with temporary.open("wb") as file:
                yield TextRows(file, output_format)


def _jsonl_line(prediction: Prediction) -> str:
    return json.dumps(prediction.to_dict(), ensure_ascii=False) + "\n"


def _csv_line(one: Prediction) -> str:
    top_k = "; ".join(f"{label} {probability:.6f}" for label, probability in one.top_k)
    label_set = None if one.label_set is None else "; ".join(one.label_set)
    return _csv_row(
        [
            *(one.path, one.label, one.probability, top_k, one.known, label_set),
            *(one.model_version, one.converted_from, one.error),
        ]
    )


def _csv_row(values: Iterable[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def _table_line(one: Prediction) -> str:
    first, second = TABLE_WIDTHS
    path = one.path.replace("\n", "\\n") + (f" (from {one.converted_from})" if one.converted_from else "")
    if one.error is not None:
        return f"{'-':{first}}  {'-':{second}}  {path}  error: {one.error}\n"
    others = ", ".join(f"{label} {probability:.3f}" for label, probability in one.top_k[one.is_known :])
    if not one.is_known:
        return f"{NOT_KNOWN:{first}}  {'-':{second}}  {path}  [{others}]\n"
    return f"{one.label or '':{first}}  {one.probability:<{second}.3f}  {path}  [{others}]\n"


class WrittenRow(NamedTuple):
    """A complete row of an output file."""

    path: str
    failed: bool
    end: int
    """Offset of the byte after the row."""


class PartialRows(TextRows):
    """The rows of a resumable run."""

    def __init__(self, path: Path, output_format: str, file: IO[bytes]) -> None:
        """Continue `file` after its last complete row."""
        self.num_done = 0
        """Inputs that have a row from an earlier run."""
        self.num_failed = 0
        """Number of these without an answer."""
        end = 0
        for row in written_rows(path, output_format):
            self.num_done += 1
            self.num_failed += row.failed
            end = row.end
        file.truncate(end)
        super().__init__(file, output_format, header=end == 0)

    def write(self, prediction: Prediction) -> None:
        """Write one row, unbuffered, so that it survives a crash of this process."""
        super().write(prediction)
        self._file.flush()


@contextmanager
def open_partial(output_format: str, out: Path, *, resume: bool) -> Iterator[PartialRows]:
    """Write rows to OUT.partial, which is renamed to OUT once it is complete.

    With `resume` an existing OUT.partial is continued.

    Raises:
        UsageError: the file exists and `resume` is off, or another run is writing to it.
    """
    path = partial_path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise UsageError(f"{path}: another run is writing to it; choose another --out") from exc
        if not resume and path.stat().st_size:
            raise UsageError(
                f"{path}: left by an interrupted run; continue it with --resume, or remove it to start again"
            )
        yield PartialRows(path, output_format, file)
        file.flush()
        os.fsync(file.fileno())
        os.replace(path, out)
    fsync_path(out.parent)


def skip_done(path: Path, output_format: str, images: Iterable[Source]) -> Iterator[Source]:
    """Yield the inputs that have no row in `path` yet.

    Raises:
        UsageError: a row belongs to another input, so the inputs have changed.
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
    """Path of the rows of an incomplete run."""
    return out.with_name(f"{out.name}.partial")


def written_rows(path: Path, output_format: str) -> Iterator[WrittenRow]:
    """The complete rows of a file, up to the first incomplete one."""
    with path.open("rb") as file:
        end = 0
        record = b""
        for line in file:
            record += line
            # A quoted CSV path may contain a newline; inside the quotes their number is odd.
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
                    if len(cells) != len(COLUMNS) or "\0" in text:
                        return
                    if cells != list(COLUMNS):
                        yield WrittenRow(cells[0], bool(cells[-1]), end)
            except (ValueError, KeyError, TypeError):
                return
            record = b""
