"""Render the Grafana dashboards: `python -m monitoring.dashboards`.

The JSON under `grafana/dashboards` is committed, and a test fails when it is not what this renders.
"""

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from fruitstand.artefacts import atomic_file
from monitoring.board import Board, to_grafana
from monitoring.boards import BOARDS

DIRECTORY = Path(__file__).parent / "grafana" / "dashboards"


def render(board: Board) -> str:
    """A dashboard as Grafana's JSON, keys sorted, with a newline at the end."""
    return json.dumps(to_grafana(board), cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_dashboards(directory: Path = DIRECTORY) -> None:
    """Write every dashboard to UID.json and remove those that are no more."""
    for board in BOARDS:
        with atomic_file(directory / f"{board.uid}.json") as temporary:
            temporary.write_text(render(board), encoding="utf-8")
    current = {f"{board.uid}.json" for board in BOARDS}
    for path in directory.glob("*.json"):
        if path.name not in current:
            path.unlink()


if __name__ == "__main__":
    write_dashboards()
