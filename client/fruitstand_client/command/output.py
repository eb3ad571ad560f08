"""Predictions as rows: a table, JSON lines, CSV or parquet, written as they come."""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from fruitstand.artefacts import atomic_file
from fruitstand.errors import UsageError
from fruitstand_client.prediction import Prediction

FORMATS = ("table", "jsonl", "csv", "parquet")
CSV_COLUMNS = ("path", "label", "probability", "top_k", "model_version", "converted_from", "error")
TABLE_WIDTHS = (24, 6)


class Rows(Protocol):
    """Where rows go."""

    def write(self, prediction: Prediction) -> None:
        """One row."""


class TextRows:
    """Rows as lines of UTF-8; a path may hold bytes that are none, which are written as escapes."""

    def __init__(self, file: IO[bytes], output_format: str, *, header: bool = True) -> None:
        """Write to an open file, the header first where the format has one."""
        self._file = file
        self._line = {"table": _table_line, "jsonl": _jsonl_line, "csv": _csv_line}[output_format]
        if header and output_format == "csv":
            self._put(_csv_row(CSV_COLUMNS))
        elif header and output_format == "table":
            self._put(f"{'label':{TABLE_WIDTHS[0]}}  {'prob':{TABLE_WIDTHS[1]}}  image  [next]\n")

    def write(self, prediction: Prediction) -> None:
        """One line."""
        self._put(self._line(prediction))

    def _put(self, line: str) -> None:
        self._file.write(line.encode("utf-8", "backslashreplace"))


class ParquetRows:
    """Rows as columns, in groups of `GROUP_ROWS`."""

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
        self._schema = pa.schema(
            [
                ("path", pa.string()),
                ("label", pa.string()),
                ("probability", pa.float32()),
                ("top_k", pa.list_(rank)),
                ("model_version", pa.string()),
                ("converted_from", pa.string()),
                ("error", pa.string()),
            ]
        )
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
        """Write what is left, and the file's end."""
        if self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


def escaped(path: str) -> str:
    """A path as it is written: bytes that are no UTF-8 as escapes."""
    return path.encode("utf-8", "backslashreplace").decode()


@contextmanager
def open_rows(output_format: str, out: Path | None) -> Iterator[Rows]:
    """Rows that go to a file which appears whole or not at all, or to stdout.

    Args:
        output_format: one of `FORMATS`.
        out: the file; None writes to stdout.

    Raises:
        UsageError: parquet to stdout.
    """
    if out is None:
        if output_format == "parquet":
            raise UsageError("parquet is not written to stdout; give --out FILE")
        yield TextRows(sys.stdout.buffer, output_format)
        sys.stdout.buffer.flush()
        return
    with atomic_file(out) as temporary:
        if output_format == "parquet":
            parquet = ParquetRows(temporary)
            try:
                yield parquet
            finally:
                parquet.close()
        else:
            with temporary.open("wb") as file:
                yield TextRows(file, output_format)


def _jsonl_line(prediction: Prediction) -> str:
    return json.dumps(prediction.to_dict(), ensure_ascii=False) + "\n"


def _csv_line(one: Prediction) -> str:
    top_k = "; ".join(f"{label} {probability:.6f}" for label, probability in one.top_k)
    return _csv_row(
        [one.path, one.label, one.probability, top_k, one.model_version, one.converted_from, one.error]
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
    others = ", ".join(f"{label} {probability:.3f}" for label, probability in one.top_k[1:])
    return f"{one.label or '':{first}}  {one.probability:<{second}.3f}  {path}  [{others}]\n"
