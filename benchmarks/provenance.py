"""Where, when and how a number was measured."""

import datetime
import shlex
import sys
from pathlib import Path

from fruitstand.checkout import git_commit
from fruitstand.hardware import hardware


def provenance() -> dict[str, object]:
    """Hardware, date, commit and command of this process, as every result file carries them."""
    return {
        "hardware": hardware(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": git_commit(Path(__file__).parent),
        # Of an absolute path only its last part: where a machine keeps its data is nobody's business.
        "command": shlex.join(
            [
                "python",
                "-m",
                _module(),
                *(Path(word).name if word[:1] == "/" else word for word in sys.argv[1:]),
            ]
        ),
    }


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).name
