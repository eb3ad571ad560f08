"""`fruitstand train` and `fruitstand evaluate`."""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fruitstand.cli_shared import Json, needs, print_json
from fruitstand.errors import UsageError


class Split(StrEnum):
    """Parts of a prepared folder."""

    train = "train"
    val = "val"
    test = "test"


def train(
    data: Annotated[Path, typer.Option(help="Prepared folder.")],
    out: Annotated[Path, typer.Option(help="Run folder to make, such as runs/first.")],
    model: Annotated[str, typer.Option(help="A timm ResNet.")] = "resnet18",
    epochs: Annotated[int, typer.Option(help="Passes over the train split.")] = 8,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 32,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 0.05,
    input_size: Annotated[int, typer.Option(help="Height and width of the input, pixels.")] = 100,
    pretrained: Annotated[bool, typer.Option(help="Start from timm's ImageNet weights.")] = False,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Train a timm ResNet."""
    with needs("train"):
        from training.config import TrainConfig
        from training.train import train as run_training

        try:
            config = TrainConfig(
                model_name=model,
                epochs=epochs,
                batch_size=batch_size,
                lr=lr,
                input_size=input_size,
                pretrained=pretrained,
                seed=seed,
            )
        except ValueError as exc:
            raise UsageError(str(exc)) from exc
        if resume and overwrite:
            raise UsageError("--resume and --overwrite exclude each other")
        meta = run_training(config, data_directory=data, out=out, resume=resume, overwrite=overwrite)
    split, metrics = next(iter(meta["metrics"].items()))
    if as_json:
        print_json({"run": str(out), "train_s": meta["train_s"], "split": split, **metrics})
    else:
        print(f"{out}: {model}, {meta['train_s']:.0f} s, {split} top1 {metrics['top1']:.4f}")


def evaluate(
    run: Annotated[Path | None, typer.Option(help="Evaluate a run offline.")] = None,
    url: Annotated[
        str | None, typer.Option(help="Evaluate a server, HOST:PORT of its gRPC endpoint.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Prepared folder; default: the run's own.")] = None,
    split: Annotated[Split, typer.Option(help="Which part.")] = Split.test,
    as_json: Json = False,
) -> None:
    """Measure a run, or a server; the same numbers for both."""
    if (run is None) == (url is None):
        raise UsageError("give either --run or --url")
    with needs("train"):
        from training.evaluate import evaluate_answers, evaluate_run

        if run is not None:
            metrics = evaluate_run(run, data_directory=data, split=split.value)
        elif data is None or url is None:
            raise UsageError("--url needs --data: the prepared folder whose images to send")
        else:
            metrics = evaluate_answers(
                data, split.value, lambda paths, num_classes: _ask_server(url, paths, num_classes)
            )
    _print_metrics(metrics, as_json)


def _ask_server(url: str, paths: list[Path], num_classes: int) -> Iterator[dict[str, float] | str]:
    """For each image the served probabilities by label, or why there are none."""
    with needs("client"):
        from fruitstand_client import Client
    from fruitstand.progress import track

    with Client(url) as client:
        # One more than the data has: a server with more classes is noticed.
        answers = client.classify_stream(paths, top_k=num_classes + 1)
        for one in track(answers, total=len(paths), description="classify"):
            yield one.error or {rank.label: rank.probability for rank in one.top_k}


def _print_metrics(metrics: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(metrics)
        return
    for key in ("data_source", "split", "num_images", "top1", "top5", "macro_f1", "ece"):
        value = metrics[key]
        print(f"{key:12} {value:.4f}" if isinstance(value, float) else f"{key:12} {value}")
    worst = sorted(metrics["per_class"].items(), key=lambda item: item[1]["recall"])[:5]
    print("lowest recall: " + ", ".join(f"{label} {row['recall']:.3f}" for label, row in worst))
