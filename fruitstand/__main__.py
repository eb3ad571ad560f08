"""`python -m fruitstand`: the same as the `fruitstand` command."""

from fruitstand.cli import main

main()
