"""The images that a load test sends: real files, read into memory before the first request."""

import random
from pathlib import Path

from fruitstand.contract import IMAGE_SUFFIXES
from fruitstand_client.command.sources import find_images

MAX_IMAGES = 2_000


def read_sample(folder: Path, maximum: int = MAX_IMAGES) -> tuple[bytes, ...]:
    """Up to `maximum` files of a folder and the folders in it, drawn at random but always the same ones.

    Raises:
        UsageError: no such folder, or no image in it.
    """
    found = [Path(str(path)) for path in find_images([str(folder)])]
    paths = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]  # as they are, none converted
    chosen = random.Random(0).sample(paths, min(maximum, len(paths)))
    return tuple(path.read_bytes() for path in chosen)
