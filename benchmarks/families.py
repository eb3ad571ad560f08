r"""Take ten timm families from a folder to served answers: trained, exported, gated, served, asked.

    python -m benchmarks.families --out benchmarks/results/families_HARDWARE_DATE_COMMIT.json
    python -m benchmarks.families --out tried.json --models swin_tiny_patch4_window7_224

The images are painted and the epochs few, so accuracy means nothing here. Each family has the size, filter
and crop that timm gives it. Export refuses fp16 or int8 files that miss a gate, and the result says which.
"""

import asyncio
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import timm
import typer

from benchmarks.load import Target, closed_loop
from fruitstand.artefacts import read_json, write_json
from fruitstand.machine.provenance import provenance
from fruitstand.machine.threads import thread_budget
from fruitstand.manifest import PreparedData, read_prepared
from fruitstand.repository.versions import read_version
from fruitstand.runs import read_run
from fruitstand.stages import command_line, console, served, step
from fruitstand_client import Client
from scoring.model import pin_repository
from training.evaluate.predict import predict_probabilities

MODELS = (
    *("mobilenetv3_small_100", "levit_128s", "vit_tiny_patch16_224", "regnety_002", "resnet18"),
    *("convnext_atto", "efficientnet_b0", "ghostnet_100", "repvgg_a0", "densenet121"),
)
NUM_CLASSES = 4
IMAGES_PER_CLASS = 60
IN_FLIGHT = 16
"""Single-image requests in flight."""
NUM_COMPARED = 48
"""Test images whose answers are compared."""


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write after each family, or to add to.")],
    models: Annotated[str, typer.Option(help="Comma-separated names of timm.")] = ",".join(MODELS),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the train split.")] = 4,
    seconds: Annotated[float, typer.Option(min=1, help="Length of the load on each server.")] = 3.0,
) -> None:
    """Run the families one after another and write the result."""
    result: dict[str, Any] = {
        **provenance(),
        "settings": {
            "epochs": epochs,
            "seconds": seconds,
            "in_flight": IN_FLIGHT,
            "num_compared": NUM_COMPARED,
            "num_classes": NUM_CLASSES,
            "images_per_class": IMAGES_PER_CLASS,
        },
        "families": read_json(out)["families"] if out.exists() else {},
    }
    with TemporaryDirectory(prefix="fruitstand-families-") as scratch:
        data = Path(scratch, "data")
        painted = ("--num-classes", NUM_CLASSES, "--images-per-class", IMAGES_PER_CLASS)
        step("data", "prepare", "--source", "generated", "--out", data, *painted)
        for name in models.split(","):
            started = time.monotonic()
            row = _family(name, read_prepared(data), Path(scratch, name), epochs, seconds)
            row["total_s"] = round(time.monotonic() - started, 1)
            result["families"][name] = {**row, "commit": result["commit"]}
            write_json(out, result)
            console.print(f"{name}: {result['families'][name]}")


def _family(name: str, data: PreparedData, folder: Path, epochs: int, seconds: float) -> dict[str, Any]:
    """One family's row; a verb that fails ends it, and the row names the verb."""
    size = timm.get_pretrained_cfg(name).input_size[-1]
    run, repository = folder / "run", folder / "model_repository"
    own = (f"input_size={size}", "preprocessing=timm", "batch_size=8", "lr=0.0005", "opt=adamw")
    settings = [part for one in own for part in ("--set", one)]
    row: dict[str, Any] = {"input_size": size}
    try:
        arguments = ("--data", data.directory, "--out", run, "--model", name, "--epochs", epochs)
        row["train_s"] = step("train", *arguments, *settings)["train_s"]
        exported = step("export", "--run", run, "--repository", repository)
    except SystemExit:
        return {**row, "failed": "export" if "train_s" in row else "train"}
    version = read_version(repository, 1)
    for variant in ("fp16", "int8"):
        row[variant] = exported["reports"][variant].get("left_out", "passed")
    return {
        **row,
        "preprocessing": version.manifest["preprocessing"],
        "num_gates": len(exported["gates"]),
        "int8_report": exported["reports"]["int8"],
        "served": f"{version.serve.cpu_model} on {version.serve.cpu_engine}",
        **_answers(data, run, repository, seconds),
    }


def _answers(data: PreparedData, run: Path, repository: Path, seconds: float) -> dict[str, Any]:
    """Compare PyTorch, the served file offline, and the server; then load the server."""
    rows = data.split("test")
    rows = [rows[at] for at in np.linspace(0, len(rows) - 1, NUM_COMPARED).astype(int)]
    files = [(data.directory / row.path).read_bytes() for row in rows]
    labels = data.labels
    torch_top1 = predict_probabilities(read_run(run), data, rows).argmax(axis=1)
    model = pin_repository(repository, None).open(num_threads=thread_budget(), top_k=len(labels))
    offline = [dict(zip(one.labels, one.probabilities, strict=True)) for one in model(files)]
    with served(repository, log=run.parent / "triton.log") as url:
        with Client(url) as client:
            online = [dict(one.top_k) for one in client.classify(files, top_k=len(labels))]
        load = asyncio.run(closed_loop(Target(url, files), IN_FLIGHT, seconds))
    table = np.array([[[one[label] for label in labels] for one in ranked] for ranked in (offline, online)])
    truth = np.array([labels.index(row.label) for row in rows])
    return {
        "num_images": len(rows),
        "top1_torch": float(np.mean(torch_top1 == truth)),
        "top1_served": float(np.mean(table[1].argmax(axis=1) == truth)),
        "served_as_torch": float(np.mean(table[1].argmax(axis=1) == torch_top1)),
        "offline_to_served_max": float(np.abs(table[0] - table[1]).max()),
        "images_per_s": load.images_per_s,
        "p50_ms": load.p50_ms,
    }


if __name__ == "__main__":
    command_line(main)
