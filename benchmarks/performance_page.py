"""`docs/performance.md`: its tables and plots, rendered from the result files.

python -m benchmarks.performance_page
"""

from pathlib import Path
from typing import Any

from benchmarks.accuracy import RESULTS
from fruitstand.artefacts import read_json, write_bytes
from loadtests.results.plots import draw
from loadtests.results.result import read_result

PAGE = Path("docs/performance.md")
PLOTS = Path("docs/performance")
MARK = "<!-- rendered: what follows is written by python -m benchmarks.performance_page -->\n"


def render(page: str, results: Path) -> str:
    """The page with new tables; what stands above the mark stays.

    Args:
        page: the page as it is.
        results: the folder with the result files.
    """
    method = page.partition(MARK)[0]
    peers = [(path.name, read_json(path)) for path in sorted(results.glob("peers_*.json"))]
    loads = [
        (path.name, read_result(path))
        for kind in ("loadtest", "profile")
        for path in sorted(results.glob(f"{kind}_*.json"))
    ]
    parts = ["## Results", *(_peers(*one) for one in peers), *(_load(*one) for one in loads)]
    if len(parts) == 1:
        parts.append("Nothing is measured yet.")
    return method + MARK + "\n" + "\n\n".join(parts) + "\n"


def _peers(name: str, result: dict[str, Any]) -> str:
    loads = [f"c{number}" for number in result["settings"]["in_flight"]]
    head = ["peer", "start s", "MiB"]
    head += [f"{load}: {what}" for load in loads for what in ("images/s", "p99 ms", "ours over it")]
    lines = [f"### Peers\n\n{_source(name, result)}\n", _row(head), _row(["---"] * len(head))]
    for peer, row in result["summary"].items():
        if "failed" in row:
            lines.append(_row([peer, row["failed"], *[""] * (len(head) - 2)]))
            continue
        cells = [peer, f"{row['start_s']:.1f}", f"{row['memory_mib']:.0f}"]
        for load in loads:
            ratio = row[load].get("ours_over_it", {"median": 1, "min": 1, "max": 1})
            spread = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
            cells += [f"{row[load]['images_per_s']:.0f}", f"{row[load]['p99_ms']:.0f}", spread]
        lines.append(_row(cells))
    return "\n".join(lines)


def _load(name: str, result: dict[str, Any]) -> str:
    head = ["loop", "load", "request batch", "images/s", "p50 ms", "p95 ms", "p99 ms"]
    lines = [f"### {result['tool']}\n\n{_source(name, result)}\n", _row(head), _row(["---"] * len(head))]
    for point in result["points"]:
        latency = [f"{point['latency_ms'][key] or 0:.1f}" for key in ("p50", "p95", "p99")]
        cells = [point["loop"], f"{point['load']:g}", f"{point['request_batch']:g}"]
        lines.append(_row([*cells, f"{point['images_per_s']:.0f}", *latency]))
    folder = PLOTS / Path(name).stem
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [path.relative_to(PAGE.parent) for path in draw(result, folder)]
    return "\n".join([*lines, "", *(f"![{path.stem.replace('_', ' ')}]({path})" for path in pictures)])


def _source(name: str, result: dict[str, Any]) -> str:
    hardware = result["hardware"]
    where = f"{hardware['num_cores']} cores ({hardware['cpu']})"
    return f"{result['date'][:10]}, {where}, [{name}](../benchmarks/results/{name}): `{result['command']}`"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Write the page."""
    write_bytes(PAGE, render(PAGE.read_text(encoding="utf-8"), RESULTS).encode())
    print(PAGE)


if __name__ == "__main__":
    main()
