"""`docs/results.md`: the table of all accuracy results, rendered from their files.

python -m benchmarks.results_page
"""

from pathlib import Path

from benchmarks.accuracy import RESULTS
from fruitstand.artefacts import read_json, write_bytes

PAGE = Path("docs/results.md")

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
    """The page.

    Args:
        results: the folder with the result files.
    """
    found = {path.name: read_json(path) for path in results.glob("accuracy_*.json")}
    order = sorted(found, key=lambda name: (*_keys(found[name]), found[name]["date"], name))
    if not order:
        return f"{_INTRODUCTION}\nNothing is measured yet.\n"
    head = (
        "| data | split | model | classes, test images | top-1 (95 % interval) | 1-NN | majority"
        " | macro F1 | ECE | training | measured |"
    )
    lines = [_INTRODUCTION, head, "|" + "---|" * (head.count("|") - 1)]
    lines += [_row(name, found[name]) for name in order]
    lines += ["", "The commands, in the order of the table:", "", "```bash"]
    lines += [found[name]["command"] for name in order]
    return "\n".join([*lines, "```", ""])


def _keys(result: dict) -> tuple[str, str, str]:
    summary = result["summary"]
    return summary["dataset"], summary["split_kind"], summary["model_name"]


def _row(name: str, result: dict) -> str:
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
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Write the page."""
    write_bytes(PAGE, render(RESULTS).encode())
    print(PAGE)


if __name__ == "__main__":
    main()
