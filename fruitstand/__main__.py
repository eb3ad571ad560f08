"""The `fruitstand` command, also as `python -m fruitstand`."""

from fruitstand.cli import main

if __name__ == "__main__":
    main()
