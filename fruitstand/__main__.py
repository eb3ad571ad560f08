"""The `fruitstand` command, also as `python -m fruitstand`."""

import os
import sys
from contextlib import nullcontext

from fruitstand.background import in_the_background

NICENESS_OF_A_PROMOTION = 10
"""A server on the same machine answers meanwhile; this is for where nothing can compute in idle time."""


def main() -> None:
    """Run the verb; a promotion gives way before it imports anything, which takes a quarter of a second."""
    promotes = sys.argv[1:3] == ["models", "promote"]
    if promotes:
        os.nice(NICENESS_OF_A_PROMOTION)
    with in_the_background() if promotes else nullcontext():
        from fruitstand.cli import main as run

        run()


if __name__ == "__main__":
    main()
