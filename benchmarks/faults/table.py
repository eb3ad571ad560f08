"""The table that `docs/reliability.md` opens with, from `benchmarks/results/faults_*.json`.

python -m benchmarks.faults.table
"""

from pathlib import Path
from typing import Any

from benchmarks.faults.subjects import SUBJECTS
from fruitstand.artefacts import read_json, write_bytes

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- rendered by python -m benchmarks.faults.table -->\n", "<!-- rendered: end -->\n"
NAMES = {
    "fruitstand": "ours, one server",
    "fruitstand_gateway": "ours, 3 replicas and gateway",
    "mosec": "Mosec",
    "litserve": "LitServe",
    "bentoml": "BentoML",
    "ray": "Ray Serve",
    "mlserver": "MLServer",
    "torchserve": "TorchServe",
    "fastapi": "FastAPI",
}
ROWS = {
    "neighbours": "Truncated JPEG among 8 in flight, 20 times: neighbours answered right (its own status)",
    "bad_inputs": "20 kinds of bad input alone: whose fault the status says",
    "overload": "3x the capacity for 20 s: goodput at the load sent, p99 of refusals, lost, time back",
    "give_up": "64 callers at once hang up after 50 ms: abandoned calls that were computed all the same",
    "kill": "`kill -9` of a worker: failed calls, time back",
    "freeze": "SIGSTOP of a worker for 10 s: failed calls, time back",
    "large_body": "Body of 100 MB: status, failed neighbours, growth of peak memory",
    "gzip_bomb": "1 MB of gzip, 1 GiB unpacked: status, failed neighbours, growth of peak memory",
    "connections": "200 idle and slow connections for 25 s: failed neighbours, connections cut off",
    "swap": "Another model takes over: failed calls, old answers after a new one, longest gap",
    "terminate": "SIGTERM with 32 calls under way: lost ones, later ones broken off",
    "soak": "10 minutes at 10 calls/s: growth of memory after 3 minutes of warm-up, failed calls",
}


def render(results: dict[str, dict[str, Any]]) -> str:
    """The section, Markdown.

    Args:
        results: result files by name, the oldest first; of each cell the newest counts.
    """
    subjects: dict[str, dict[str, Any]] = {}
    lines = []
    for name, result in results.items():
        for key, row in result["subjects"].items():
            old = subjects.get(key, {"cells": {}})
            old.pop("failed", None)
            subjects[key] = {**old, **row, "cells": {**old["cells"], **row["cells"]}}
        hardware, rows = result["hardware"], result["subjects"].values()
        loads = [cell["load_1_min"] for row in rows for cell in row["cells"].values()] or [0]
        lines.append(
            f"Measured {result['date'][:10]} on {hardware['num_cores']} cores ({hardware['cpu']}), commit "
            f"{(result['commit'] or 'unknown')[:7]}, [{name}](../benchmarks/results/{name}). Load average "
            f"{min(loads):.1f} to {max(loads):.1f}; the file has it for each cell."
        )
    subjects = {key: subjects[key] for key in NAMES if key in subjects}
    capacities = (f"{row.get('capacity_per_s', 0):.0f}" for row in subjects.values())
    lines += [
        "",
        _row(["fault", *(NAMES[key] for key in subjects)]),
        _row(["---"] * (len(subjects) + 1)),
        _row(["Capacity, images/s over HTTP", *capacities]),
    ]
    lines += [
        _row([title, *(_text(row, fault) for row in subjects.values())]) for fault, title in ROWS.items()
    ]
    lines += ["", "How the model is swapped, and why a server did not start:", ""]
    for key, row in subjects.items():
        lines.append(f"- {NAMES[key]}: {row.get('failed') or SUBJECTS[key].swap_note}.")
    return "\n".join([*lines, ""])


def _text(row: dict[str, Any], fault: str) -> str:
    cell = row["cells"].get(fault)
    if cell is None:
        return "did not start" if "failed" in row else "not run"
    return cell["text"] + " (r)" * (cell["after"] == "restarted")


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Write the table; what stands around it stays."""
    found = {path.name: read_json(path) for path in RESULTS.glob("faults_*.json")}
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    section = render(dict(sorted(found.items(), key=lambda one: str(one[1]["date"]))))
    write_bytes(PAGE, (before + BEGIN + section + END + rest.partition(END)[2]).encode())


if __name__ == "__main__":
    main()
