"""Every kind of file a caller may send as an image, each with the expected verdict.

The files are stored in `kinds.tar.xz`, so that every server gets the same bytes whatever Pillow is installed.
`tests/kinds` makes the archive.
`python -m serving.attest.kinds` prints the table of `docs/reference/input-kinds.md`.
"""

import functools
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).with_name("kinds.tar.xz")
TABLE_NAME = "kinds.json"
"""First member of the archive: name, verdict and remark of each kind. A kind's file is named after it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageKind:
    """One kind of input, with an example file."""

    name: str
    content: bytes
    verdict: str
    """First words of the refusal's reason; empty when the image is classified."""
    remark: str
    """What the server does with it, for `docs/reference/input-kinds.md`."""

    @property
    def is_accepted(self) -> bool:
        """Whether the server classifies it."""
        return not self.verdict


@functools.cache
def image_kinds() -> tuple[ImageKind, ...]:
    """All kinds: accepted, damaged, unsupported, too large, and files that are no images."""
    with tarfile.open(CORPUS) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}
    return tuple(ImageKind(content=files[row["name"]], **row) for row in json.loads(files[TABLE_NAME]))


def table() -> str:
    """The Markdown table of `docs/reference/input-kinds.md`."""
    rows = ["| input | verdict | remark |", "|---|---|---|"]
    rows += [f"| `{kind.name}` | {kind.verdict or 'answered'} | {kind.remark} |" for kind in image_kinds()]
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
