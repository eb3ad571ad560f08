"""`make demo`: prepare, train, export, serve and classify on this machine, and print one table.

    python -m loadtests.demo                      # synthetic images, about five minutes on two cores
    python -m loadtests.demo --data PATH          # your images, folder or zip

Every stage runs the command that a user would type. The output goes to `runs/demo/`; an earlier demo is kept
in `runs/demo.previous/`.
"""

import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Column, Table

from fruitstand.artefacts import write_json
from fruitstand.contract import EMBEDDED_SERVER_VERSION, FRUIT_RESNET
from fruitstand.errors import DataError, GateFailed
from fruitstand.machine.provenance import provenance
from fruitstand.manifest import read_prepared
from fruitstand.progress import track
from fruitstand.stages import command_line, console, served, step
from fruitstand_client import Client
from loadtests.server_statistics import ServedModel, growth

EPOCHS_GENERATED = 4
EPOCHS_REAL = 5
IN_FLIGHT = 64
"""Single-image requests in flight, which dynamic batching has to turn into batches."""
NUM_WARM_UP = 256
MAX_TOP1_DIFFERENCE = 0.002


def demo(
    data: Annotated[
        Path | None, typer.Option(help="Folder or zip of class folders; default: synthetic images.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for all output of the demo.")] = Path("runs/demo"),
    model: Annotated[str, typer.Option(help="Any timm image classifier.")] = "resnet18",
    num_classes: Annotated[int, typer.Option(help="Classes to generate.")] = 12,
    images_per_class: Annotated[int, typer.Option(help="Images to generate for each class.")] = 200,
    epochs: Annotated[
        int | None, typer.Option(help="Default: 4 with synthetic images, 5 with real ones.")
    ] = None,
) -> None:
    """Prepare, train, export, serve, classify, report."""
    _keep_previous(out)
    source = "generated" if data is None else str(data)
    epochs = epochs or (EPOCHS_GENERATED if data is None else EPOCHS_REAL)
    started = time.monotonic()
    if data is None:
        console.print("[bold]The images are synthetic.[/] For real ones: make demo DATA=PATH")
        choices = ("--num-classes", num_classes, "--images-per-class", images_per_class)
    else:  # comparable with published figures, whose Test set leaks as well: see docs/evaluate.md
        choices = ("--validation", "frame")
    step("data", "prepare", "--source", source, "--out", out / "data", *choices)
    trained = step(
        "train", "--data", out / "data", "--out", out / "run", "--model", model, "--epochs", epochs
    )
    exported = step("export", "--run", out / "run", "--repository", out / "model_repository")
    measured = _classify_served(out)
    report = {
        **provenance(),
        "model_name": model,
        "epochs": epochs,
        "train_s": trained["train_s"],
        "top1_offline": trained["top1"],
        **measured,
        "cpu_model": exported["serve"]["cpu_model"],
        "int8": exported["reports"]["int8"],
        "total_s": round(time.monotonic() - started, 1),
    }
    write_json(out / "report.json", report)
    _print_table(report, out)
    _check(report)
    prepared = read_prepared(out / "data")
    print("\nwhat next:")
    for words, command in next_steps(out, prepared.directory / prepared.split("test")[0].path):
        print(f"  {words}:\n    {command}")
    if data is None:
        print("  with your own pictures, a sub-folder for each class: make demo DATA=FOLDER")


def _keep_previous(out: Path) -> None:
    if out.exists():
        previous = out.with_name(f"{out.name}.previous")
        shutil.rmtree(previous, ignore_errors=True)
        out.rename(previous)
        console.print(f"the earlier demo is kept in {previous}")
    out.mkdir(parents=True)


def _classify_served(out: Path) -> dict:
    """Send the test split to the server as single-image requests; measure accuracy, speed and batching."""
    data = read_prepared(out / "data")
    paths = [data.directory / row.path for row in data.split("test")]
    with (
        served(out / "model_repository", log=out / "triton.log") as url,
        ServedModel(url) as model,
        Client(url, batch_size=1, in_flight=IN_FLIGHT) as client,
    ):
        client.classify(paths[:NUM_WARM_UP])
        client.latencies_ms.clear()
        before = model.read()
        started = time.monotonic()
        answers = list(track(client.classify_stream(paths), total=len(paths), description="classify"))
        elapsed_s = time.monotonic() - started
        counters = growth(before, model.read())
        latencies_ms = np.array(client.latencies_ms)
    failed = next((one for one in answers if one.error is not None), None)
    if failed is not None:
        raise DataError(f"{failed.path}: {failed.error}")
    hits = [one.label == row.label for one, row in zip(answers, data.split("test"), strict=True)]
    return {
        "data_source": data.source,
        "top1_served": float(np.mean(hits)),
        "num_images": len(paths),
        "request_batch": 1,
        "in_flight": IN_FLIGHT,
        "images_per_s": round(len(paths) / elapsed_s, 1),
        "latency_p50_ms": round(float(np.percentile(latencies_ms, 50)), 2),
        "latency_p99_ms": round(float(np.percentile(latencies_ms, 99)), 2),
        "mean_batch": round(counters[FRUIT_RESNET].mean_batch, 2),
        "mean_batch_per_step": {name: round(counters[name].mean_batch, 2) for name in model.steps},
        "server_version": model.server_version,
    }


def _check(report: dict) -> None:
    """Check that the served accuracy equals the offline one and that the expected server answered."""
    difference = abs(report["top1_offline"] - report["top1_served"])
    # In a small test split, a single image exceeds the tolerance.
    allowed = max(MAX_TOP1_DIFFERENCE, 1 / report["num_images"])
    if difference > allowed + 1e-9:
        raise GateFailed(f"top-1 served differs from offline by {difference:.4f}, allowed {allowed:.4f}")
    if report["server_version"] != EMBEDDED_SERVER_VERSION:
        raise GateFailed(f"Triton {report['server_version']} answered, expected {EMBEDDED_SERVER_VERSION}")


def _print_table(report: dict, out: Path) -> None:
    table = Table("what", Column("value", justify="right"), title_justify="left")
    table.title = f"{report['model_name']} ({report['cpu_model']}) on {report['data_source']} images"
    rows = {
        "top-1 offline (PyTorch, fp32)": f"{report['top1_offline']:.4f}",
        "top-1 served (DALI, Triton)": f"{report['top1_served']:.4f}",
        "images/s": f"{report['images_per_s']:.0f}",
        "latency p50": f"{report['latency_p50_ms']:.1f} ms",
        "latency p99": f"{report['latency_p99_ms']:.1f} ms",
        "mean batch size": f"{report['mean_batch']:.1f}",
        "requests": f"{report['num_images']} single images, {report['in_flight']} in flight",
        "server": f"Triton {report['server_version']}",
        "training": f"{report['epochs']} epochs, {report['train_s']:.0f} s",
        "machine": f"{report['hardware']['num_cores']} cores, {report['hardware']['cpu']}",
    }
    for what, value in rows.items():
        table.add_row(what, value)
    Console().print(table)
    print(f"report: {out / 'report.json'}")


def next_steps(out: Path, image: Path) -> list[tuple[str, str]]:
    """What to try after a demo: a line of words and a command that works as printed, without activation."""
    program = shlex.quote(os.path.relpath(Path(sys.executable).with_name("fruitstand")))
    repository, run = shlex.quote(str(out / "model_repository")), shlex.quote(str(out / "run"))
    return [
        (
            "serve it, with a page to try at http://127.0.0.1:8000",
            f"{program} serve --repository {repository}",
        ),
        (
            "ask it, from a second terminal",
            f"curl --data-binary {shlex.quote(f'@{image}')} http://127.0.0.1:8000/classify",
        ),
        ("see what it gets wrong", f"{program} evaluate --run {run}"),
    ]


if __name__ == "__main__":
    command_line(demo)
