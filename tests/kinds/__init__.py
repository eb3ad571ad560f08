"""How the files in `serving/attest/kinds.tar.xz` are made; `python -m tests.kinds` makes it again."""
