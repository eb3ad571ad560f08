"""One progress bar for everything over two seconds: on stderr, silent when stderr is no terminal."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


UPDATE_S = 0.1
"""Between two updates: one for every item costs more than many an item."""


def track(items: Iterable[T], *, total: int | None, description: str, completed: int = 0) -> Iterator[T]:
    """Yield `items` while showing how many were done, the rate and the time left.

    Args:
        items: what is worked on.
        total: how many there are, those done earlier included; None where nobody knows.
        description: one word.
        completed: done earlier.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(description, total=total, completed=completed, rate="")
        started = shown = time.monotonic()
        for count, item in enumerate(items, 1):
            yield item
            now = time.monotonic()
            if now - shown >= UPDATE_S or completed + count == total:
                rate = f"{count / (now - started):.0f}/s" if now > started else ""
                progress.update(task, completed=completed + count, rate=rate)
                shown = now
