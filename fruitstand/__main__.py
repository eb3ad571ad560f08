"""The `fruitstand` command, also as `python -m fruitstand`."""

import os
import sys

NICENESS_OF_A_PROMOTION = 19
"""A server on the same machine answers meanwhile, and the imports alone take a quarter of a second of it."""


def main() -> None:
    """Give way where the verb should, before anything is imported, and run it."""
    if sys.argv[1:3] == ["models", "promote"]:
        os.nice(NICENESS_OF_A_PROMOTION)
    from fruitstand.cli import main as run

    run()


if __name__ == "__main__":
    main()
