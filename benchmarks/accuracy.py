"""Measure accuracy and time of prepare, train and evaluate, with the commands a user would type.

    python -m benchmarks.accuracy --source ../shared/fruits-360_dataset --model resnet18 --epochs 8
    python -m benchmarks.accuracy --source ../shared/fruits-360_3-body-problem --split object -- --set lr=0.1

Arguments after `--` are passed to `fruitstand train`. Data and run are written to `runs/accuracy/`, the
result to `benchmarks/results/`; `python -m benchmarks.results_page` then renders it into `docs/results.md`.
"""

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from fruitstand.artefacts import write_json
from fruitstand.errors import UsageError
from fruitstand.machine.provenance import provenance
from fruitstand.runs import read_run
from fruitstand.stages import command_line, step

RESULTS = Path("benchmarks/results")


def measure(
    source: Annotated[str, typer.Option(help="generated, or a Fruits-360 folder or zip.")],
    extra: Annotated[list[str] | None, typer.Argument(help="After --: further flags of train.")] = None,
    split: Annotated[str, typer.Option(help="classic, object or film.")] = "classic",
    validation: Annotated[str, typer.Option(help="film, or frame.")] = "film",
    model: Annotated[str, typer.Option(help="A timm ResNet.")] = "resnet18",
    epochs: Annotated[int | None, typer.Option(help="Epochs; default: training's.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of split and training.")] = 0,
    work: Annotated[Path, typer.Option(help="Folder for data and run.")] = Path("runs/accuracy"),
    results: Annotated[Path, typer.Option(help="Folder for the result.")] = RESULTS,
) -> None:
    """Prepare, train, evaluate, record."""
    folder = work / f"{Path(source).resolve().name}-{split}-{model}"
    if folder.exists():
        raise UsageError(f"{folder}: an earlier measurement is there; remove it or choose another --work")
    data, run = folder / "data", folder / "run"
    chosen = ["--model", model, "--set", f"seed={seed}", *(extra or [])]
    if epochs:
        chosen += ["--epochs", str(epochs)]
    claims = ("--split", split, "--validation", validation, "--seed", seed)
    wall_s: dict[str, float] = {}
    prepared = _timed(wall_s, "prepare", "data", "prepare", "--source", source, "--out", data, *claims)
    trained = _timed(wall_s, "train", "train", "--data", data, "--out", run, *chosen)
    found = _timed(wall_s, "evaluate", "evaluate", "--run", run, "--data", data, "--split", "test")
    meta, baseline = read_run(run).meta, found["baseline"]
    summary = {
        "dataset": prepared["source"],
        "split_kind": split,
        "model_name": model,
        "num_classes": prepared["num_classes"],
        "num_images": prepared["num_images"],
        "num_epochs": len(meta["epochs"]),
        **{name: found[name] for name in ("top1", "top1_interval", "top5", "macro_f1", "ece")},
        "nearest_neighbour_top1": baseline["nearest_neighbour"]["top1"],
        "majority_top1": baseline["majority"]["top1"],
        "seen_in_training": found["seen_in_training"],
        "train_s": trained["train_s"],
        "total_s": round(sum(wall_s.values()), 1),
    }
    result = {
        **provenance(),
        "settings": {"split": split, "validation": validation, "seed": seed, "train": meta["config"]},
        "samples": {"wall_s": wall_s, "slices": found["slices"]},
        "summary": summary,
    }
    path = results / file_name(result)
    write_json(path, result)
    print(path)


def file_name(result: dict) -> str:
    """File name of a result: subject, hardware, date and commit."""
    summary, hardware = result["summary"], result["hardware"]
    what = _slug(f"{summary['dataset']}-{summary['split_kind']}-{summary['model_name']}")
    machine = _slug(f"{hardware['cpu']}-{hardware['num_cores']}c")
    date = result["date"][:10].replace("-", "")
    return f"accuracy_{what}_{machine}_{date}_{(result['commit'] or 'unknown')[:7]}.json"


def _slug(text: str) -> str:
    """Lower case, without the characters that separate the parts of a file name."""
    return re.sub(r"[^a-z0-9.]+", "-", re.sub(r"\((?:r|tm)\)", "", text.lower())).strip("-")


def _timed(wall_s: dict[str, float], name: str, *arguments: object) -> dict:
    started = time.monotonic()
    result = step(*arguments)
    wall_s[name] = round(time.monotonic() - started, 1)
    return result


if __name__ == "__main__":
    command_line(measure)
