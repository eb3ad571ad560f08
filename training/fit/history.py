"""What a run tells while it trains: a bar a step, a line an epoch, and `metrics.csv`."""

import csv
import io
from pathlib import Path

from rich.console import Console
from rich.progress import Progress as Bar

from fruitstand.artefacts import write_bytes

METRICS_NAME = "metrics.csv"
WALL_CLOCK = ("images_per_s", "data_wait_pct", "seconds")
"""Columns that differ between two runs that are otherwise the same."""


def write_history(path: Path, rows: list[dict[str, float]]) -> None:
    """Write one row an epoch, atomically."""
    if not rows:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


class EpochLog:
    """On stderr: a bar where it is a terminal, and a line an epoch; silent in all processes but the first."""

    def __init__(self, epochs: int, *, silent: bool) -> None:
        self._epochs = epochs
        self._console = Console(stderr=True, highlight=False, quiet=silent)
        self._bar: Bar | None = None

    def start(self, epoch: int, *, size: int, done: int, total: int) -> None:
        """Show the bar of an epoch."""
        self._bar = Bar(
            console=self._console,
            disable=not self._console.is_terminal or self._console.quiet,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(
            f"epoch {epoch + 1}/{self._epochs}, {size} px", total=total, completed=done
        )

    def advance(self) -> None:
        """One batch more."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def print(self, row: dict[str, float]) -> None:
        """The line of an epoch."""
        self._console.print(
            f"epoch {row['epoch'] + 1}/{self._epochs} at {row['size_px']} px:"
            f" train_loss {row['train_loss']:.4f}, val_loss {row['val_loss']:.4f},"
            f" val_top1 {row['val_top1']:.4f}, {row['images_per_s']:.0f} images/s,"
            f" data wait {row['data_wait_pct']:.1f} %, {row['seconds']:.0f} s"
        )

    def note(self, text: str) -> None:
        """Say something else."""
        self._console.print(text)
