"""A progress bar on stderr for everything over two seconds; silent if stderr is not a terminal."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], *, total: int | None, description: str, completed: int = 0) -> Iterator[T]:
    """Yield `items` and show progress, rate and remaining time.

    `total` includes the `completed`, items done earlier; None if it is unknown.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield from items
        return

    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Items per second."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.0f}/s" if task.speed else "")

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(items, total=total, completed=completed, description=description)
