"""Write predictions as a table, JSON lines or CSV."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

from fruitstand.errors import UsageError
from fruitstand_client.prediction import Prediction


def find_writer(output_format: str) -> Callable[[Iterable[Prediction], TextIO], tuple[int, int]]:
    """The function that writes predictions as they come, and counts images answered and not answered.

    Args:
        output_format: table, jsonl or csv.

    Raises:
        UsageError: an unknown format.
    """
    writers = {"table": _write_table, "jsonl": _write_jsonl, "csv": _write_csv}
    if output_format not in writers:
        raise UsageError(f"--format: got {output_format!r}, allowed {', '.join(writers)}")

    def write(predictions: Iterable[Prediction], file: TextIO) -> tuple[int, int]:
        counts = [0, 0]

        def counted() -> Iterator[Prediction]:
            for prediction in predictions:
                counts[prediction.error is not None] += 1
                yield prediction

        writers[output_format](counted(), file)
        return counts[0], counts[1]

    return write


def _write_jsonl(predictions: Iterable[Prediction], file: TextIO) -> None:
    for prediction in predictions:
        file.write(json.dumps(prediction.to_dict(), ensure_ascii=False) + "\n")


def _write_csv(predictions: Iterable[Prediction], file: TextIO) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["path", "label", "probability", "top_k", "model_version", "error"])
    for one in predictions:
        top_k = "; ".join(f"{rank.label} {rank.probability:.6f}" for rank in one.top_k)
        writer.writerow([one.path, one.label, one.probability, top_k, one.model_version, one.error])


def _write_table(predictions: Iterable[Prediction], file: TextIO) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("image", "label", "probability", "next")
    for one in predictions:
        if one.error is not None:
            table.add_row(escape(one.path), "-", "-", escape(f"error: {one.error}"))
        else:
            others = ", ".join(f"{other.label} {other.probability:.3f}" for other in one.top_k[1:])
            table.add_row(*map(escape, (one.path, one.label or "", f"{one.probability:.3f}", others)))
    console = Console(file=file)
    # A file has no width of its own; 80 columns would cut the paths.
    console.print(table, width=None if console.is_terminal else 200)
