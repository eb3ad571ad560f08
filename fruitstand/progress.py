"""One progress bar for everything over two seconds: on stderr, silent when stderr is no terminal."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

UPDATE_S = 0.1
"""Between two updates: one for every item costs more than many an item."""


def track(
    items: Iterable[T],
    *,
    total: int | None,
    description: str,
    completed: int = 0,
    size: Callable[[T], float] = lambda _: 1,
) -> Iterator[T]:
    """Yield `items` while showing how much was done, the rate and the time left.

    Args:
        items: what is worked on.
        total: how much there is, what was done earlier included; None where nobody knows.
        description: one word.
        completed: done earlier.
        size: how much one item counts.
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
        SpinnerColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Items a second; asked for when the bar is drawn, for it looks at a thousand samples."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.0f}/s" if task.speed else "")

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=total, completed=completed)
        shown, pending = time.monotonic(), 0.0
        for item in items:
            yield item
            pending += size(item)
            now = time.monotonic()
            if now - shown >= UPDATE_S:
                progress.advance(task, pending)
                shown, pending = now, 0.0
        progress.advance(task, pending)
