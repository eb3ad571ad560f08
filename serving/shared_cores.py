"""Several instances of one model on the same cores: one that is alone computes with all of them.

A session with a thread for each core waits for its slowest thread wherever the server or a decoder takes a
core away; one session a core does not, and computes while another hands out its answers. But alone, when few
requests come, it would leave cores idle. So each instance has both, and looks at what the others do.
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRATCH_VARIABLE = "FRUITSTAND_SCRATCH"
"""A folder of the server's, gone with it."""


class Company:
    """Whether other instances of the model compute now: a byte each, in a file that all have mapped."""

    def __init__(self, name: str, *, index: int, count: int) -> None:
        """Join it.

        Args:
            name: the same for all instances, and for nobody else.
            index: this instance's, from 0.
            count: of all.
        """
        folder = os.environ.get(SCRATCH_VARIABLE)
        if folder is None:  # a server that was not started by `fruitstand serve`
            self._bytes: mmap.mmap | bytearray = bytearray(count)
        else:
            with os.fdopen(os.open(Path(folder, name), os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
                file.truncate(count)  # keeps what the others wrote: all ask for the same length
                self._bytes = mmap.mmap(file.fileno(), count)
        self._index, self._others = index, [other for other in range(count) if other != index]

    def is_present(self) -> bool:
        """Whether one of the others computes."""
        return any(self._bytes[other] for other in self._others)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """The others see it while the block runs."""
        self._bytes[self._index] = 1
        try:
            yield
        finally:
            self._bytes[self._index] = 0
