"""Write `serving/attest/kinds.tar.xz` again: `python -m tests.kinds`."""

import io
import json
import tarfile

from serving.attest.kinds import CORPUS, TABLE_NAME
from tests.kinds.usual import kind_rows


def main() -> None:
    """The table first, then each kind's file."""
    rows = kind_rows()
    table = [{"name": name, "verdict": verdict, "remark": remark} for name, _, verdict, remark in rows]
    files = {TABLE_NAME: json.dumps(table).encode(), **{name: content for name, content, _, _ in rows}}
    with tarfile.open(CORPUS, "w:xz", preset=9) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    main()
