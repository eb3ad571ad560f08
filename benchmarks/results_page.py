"""Render `docs/results.md` and the tables of `docs/performance.md` from the result files.

python -m benchmarks.results_page
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy import RESULTS
from fruitstand.artefacts import read_json, write_bytes
from loadtests.results.plots import draw
from loadtests.results.result import LoadResult, read_result

PAGE = Path("docs/results.md")

PERFORMANCE_PAGE = Path("docs/performance.md")
PLOTS = Path("docs/performance")
MARK = "<!-- rendered: what follows is written by python -m benchmarks.results_page -->\n"

_INTRODUCTION = """\
# Results

Rendered from `benchmarks/results/accuracy_*.json` by `python -m benchmarks.results_page`; do not edit.

1-NN answers with the class of the train image whose 12x12 thumbnail is nearest, majority with the commonest
class of the train split: neither learns anything. On the classic split 1-NN is nearly as good as a network,
because the frames of Test are neighbours of the frames of Training. Only the object-disjoint split, whose
varieties training never saw, says what a model knows of fruit. The intervals (95 %, Wilson) take images as
independent; frames of one film are not.
"""


def render(results: Path) -> str:
    """Render `docs/results.md`."""
    found = {path.name: read_json(path) for path in results.glob("accuracy_*.json")}
    order = sorted(found, key=lambda name: (*_keys(found[name]), found[name]["date"], name))
    if not order:
        return f"{_INTRODUCTION}\nNothing is measured yet.\n"
    head = (
        "| data | split | model | classes, test images | top-1 (95 % interval) | 1-NN | majority"
        " | macro F1 | ECE | training | measured |"
    )
    lines = [_INTRODUCTION, head, "|" + "---|" * (head.count("|") - 1)]
    lines += [_accuracy_row(name, found[name]) for name in order]
    lines += ["", "The commands, in the order of the table:", "", "```bash"]
    lines += [found[name]["command"] for name in order]
    return "\n".join([*lines, "```", "", MARK, *_families(results), *_abstention(results)])


def _families(results: Path) -> list[str]:
    """One row for each family of timm that was taken from a folder to served answers."""
    lines = []
    for path in sorted(results.glob("families_*.json")):
        result = read_json(path)
        settings = result["settings"]
        head = ["model", "pixels, filter, crop_pct", "gates", "fp16", "int8", "int8 / fp32"]
        head += ["served on a CPU", "offline = served", "as PyTorch", "images/s", "train, all"]
        lines += [
            "## Any family",
            "",
            f"{_source(path.name, result)}",
            "",
            f"{settings['num_classes']} painted classes, {settings['epochs']} epochs from random weights."
            " A variant that misses a gate is left out; the cell says which. `offline = served` is the"
            " largest difference of a probability between the server and `score` on the same file, `as"
            f" PyTorch` the share of the {settings['num_compared']} test images with PyTorch's label."
            f" images/s: single images, {settings['in_flight']} in flight, {settings['seconds']:g} s, on a"
            " busy machine.",
            "",
            _row(head),
            _row(["---"] * len(head)),
            *(_family(name, row) for name, row in result["families"].items()),
            "",
        ]
    return lines


def _family(name: str, row: dict[str, Any]) -> str:
    if "failed" in row:
        return _row([name, f"{row['input_size']}", f"{row['failed']} failed", *[""] * 8])
    preprocessing, int8 = row["preprocessing"], row["int8_report"]
    engines = [one for attempt in int8.get("attempts", ()) for one in attempt["engines"].values()]
    speeds = [one["speedup_over_fp32"] for one in engines if one["passed"]]
    return _row(
        [
            name,
            f"{row['input_size']}, {preprocessing['interpolation']}, {preprocessing['crop_pct']:g}",
            f"{row['num_gates']} passed",
            row["fp16"],
            row["int8"],
            f"{max(speeds):.2f}" if speeds else "",
            row["served"].replace("model.onnx", "fp32").replace("model.int8.onnx", "int8"),
            f"{row['offline_to_served_max']:.1e}",
            f"{row['served_as_torch']:.3f}",
            f"{row['images_per_s']:.0f}",
            f"{row['train_s']:.0f} s, {row['total_s']:.0f} s",
        ]
    )


def _abstention(results: Path) -> list[str]:
    """Label sets and KNOWN of each measured run; nothing where none is measured."""
    lines = []
    for path in sorted(results.glob("abstention_*.json")):
        result = read_json(path)
        summary = result["summary"]
        test = summary["sets"]["test"]
        lines += [
            f"## What it does not know: {', '.join(_keys(result))}",
            "",
            f"{_source(path.name, result)}",
            "",
            f"{summary['num_classes']} classes, top-1 {summary['top1']:.4f} of {test['num_images']} images."
            f" Label sets hold the right class in {test['coverage']:.4f} of them, where"
            f" {result['settings']['abstention']['coverage']} was asked for; {test['known']:.4f} are known.",
            "",
            _row(
                [
                    "other pictures",
                    "images",
                    "AUROC of KNOWN",
                    "not known",
                    "AUROC of the largest probability",
                ]
            ),
            _row(["---"] * 5),
        ]
        for name, one in summary["others"].items():
            largest = one["auroc_of_other_scores"]["one minus the largest probability"]
            numbers = (f"{value:.4f}" for value in (one["auroc"], one["not_known"], largest))
            lines.append(_row([name, str(one["num_images"]), *numbers]))
        lines.append("")
    return lines


def _keys(result: dict) -> tuple[str, str, str]:
    summary = result["summary"]
    return summary["dataset"], summary["split_kind"], summary["model_name"]


def _accuracy_row(name: str, result: dict) -> str:
    summary, hardware = result["summary"], result["hardware"]
    low, high = summary["top1_interval"]
    cells = (
        summary["dataset"],
        f"{summary['split_kind']}, validation by {result['settings']['validation']}",
        summary["model_name"],
        f"{summary['num_classes']}, {summary['num_images']['test']}",
        f"{summary['top1']:.4f} ({low:.4f} to {high:.4f})",
        f"{summary['nearest_neighbour_top1']:.4f}",
        f"{summary['majority_top1']:.4f}",
        f"{summary['macro_f1']:.4f}",
        f"{summary['ece']:.4f}",
        f"{summary['num_epochs']} epochs, {summary['train_s'] / 60:.1f} min",
        f"{result['date'][:10]}, {hardware['num_cores']} cores ({hardware['cpu']}),"
        f" commit {(result['commit'] or 'unknown')[:7]}, [result](../benchmarks/results/{name})",
    )
    return _row(cells)


def render_performance(page: str, results: Path) -> str:
    """Render the tables of `docs/performance.md`; the text above the mark stays."""
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


def _load(name: str, result: LoadResult) -> str:
    head = ["loop", "load", "request batch", "images/s", "p50 ms", "p95 ms", "p99 ms"]
    title = f"### {result.tool}\n\n{_source(name, result.to_json())}\n"
    lines = [title, _row(head), _row(["---"] * len(head))]
    for point in result.points:
        latency = [f"{point.latency_ms[key] or 0:.1f}" for key in ("p50", "p95", "p99")]
        cells = [point.loop, f"{point.load:g}", f"{point.request_batch:g}"]
        lines.append(_row([*cells, f"{point.images_per_s:.0f}", *latency]))
    folder = PLOTS / Path(name).stem
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [path.relative_to(PERFORMANCE_PAGE.parent) for path in draw(result, folder)]
    return "\n".join([*lines, "", *(f"![{path.stem.replace('_', ' ')}]({path})" for path in pictures)])


def _source(name: str, result: dict[str, Any]) -> str:
    hardware = result["hardware"]
    where = f"{hardware['num_cores']} cores ({hardware['cpu']})"
    return f"{result['date'][:10]}, {where}, [{name}](../benchmarks/results/{name}): `{result['command']}`"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Write both pages and the plots."""
    write_bytes(PAGE, render(RESULTS).encode())
    performance = render_performance(PERFORMANCE_PAGE.read_text(encoding="utf-8"), RESULTS)
    write_bytes(PERFORMANCE_PAGE, performance.encode())


if __name__ == "__main__":
    main()
