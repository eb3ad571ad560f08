"""The `fruitstand` command, also as `python -m fruitstand`."""

import os
import sys
from contextlib import nullcontext

from fruitstand.machine.background import with_rests

NICENESS_OF_A_PROMOTION = 10
"""Between its rests."""


def main() -> None:
    """Run the verb; a promotion gives way before it imports anything, for a server answers meanwhile."""
    promotes = sys.argv[1:3] == ["models", "promote"]
    if promotes:
        os.nice(NICENESS_OF_A_PROMOTION)
    with with_rests() if promotes else nullcontext():
        from fruitstand.cli import main as run

        run()


if __name__ == "__main__":
    main()
