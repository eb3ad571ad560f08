"""What may arrive as an image, kind by kind, with its verdict: for attest, the benchmarks and the tests.

The files lie in `kinds.tar.xz`, so every server gets the same bytes, whatever Pillow is installed here.
`tests/kinds` makes them. `docs/inputs.md` holds the table; `python -m serving.attest.kinds` prints it.
"""

import functools
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).with_name("kinds.tar.xz")
TABLE_NAME = "kinds.json"
"""First member of the archive: name, verdict and remark of each kind; its file has its name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageKind:
    """One kind of input."""

    name: str
    content: bytes
    """A file of this kind."""
    verdict: str
    """The first words of the reason for which it is refused; empty where it is answered."""
    remark: str
    """What the server does with it, for `docs/inputs.md`."""

    @property
    def is_accepted(self) -> bool:
        """Whether it gets an answer."""
        return not self.verdict


@functools.cache
def image_kinds() -> tuple[ImageKind, ...]:
    """Every kind: accepted, damaged, unsupported, too large, no image at all."""
    with tarfile.open(CORPUS) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}
    return tuple(ImageKind(content=files[row["name"]], **row) for row in json.loads(files[TABLE_NAME]))


def table() -> str:
    """The table of `docs/inputs.md`, Markdown."""
    rows = ["| input | verdict | remark |", "|---|---|---|"]
    rows += [f"| `{kind.name}` | {kind.verdict or 'answered'} | {kind.remark} |" for kind in image_kinds()]
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
