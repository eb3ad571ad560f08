"""Which images a user means by files, folders, globs and `-`."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from fruitstand.contract import IMAGE_SUFFIXES
from fruitstand.errors import UsageError


def find_images(arguments: Iterable[str]) -> list[Path]:
    """Every image that the arguments name, in their order; folders are searched to the bottom, sorted.

    Args:
        arguments: files, folders, glob patterns, or "-" for a list of paths on stdin.

    Raises:
        UsageError: an argument that matches nothing, or a folder without images.
    """
    return [path for argument in arguments for path in _matches(argument)]


def _matches(argument: str) -> Iterator[Path]:
    if argument == "-":
        yield from (Path(line.rstrip("\n")) for line in sys.stdin if line.strip())
        return
    path = Path(argument)
    if path.is_dir():
        found = sorted(
            Path(parent, name)
            for parent, _, names in os.walk(path)
            for name in names
            if Path(name).suffix.lower() in IMAGE_SUFFIXES
        )
        if not found:
            raise UsageError(f"{argument}: no images in this folder ({', '.join(sorted(IMAGE_SUFFIXES))})")
        yield from found
    elif path.exists():
        yield path
    else:
        found = sorted(Path(name) for name in glob.glob(argument, recursive=True) if not os.path.isdir(name))
        if not found:
            raise UsageError(f"{argument}: no such file or folder, and nothing matches it as a pattern")
        yield from found
