"""The `fruitstand` command: one verb a stage.

stdout is the result, stderr the log. Exit 0 done, 1 failed, 2 used wrongly. A stage is imported when its verb
is called, so that `--help` is quick and no verb needs another's packages.
"""

import logging
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fruitstand import __version__
from fruitstand.cli_models import app as models_app
from fruitstand.cli_shared import Json, Port, Repository, SignKey, TrustedKeys, Url, needs, print_json
from fruitstand.errors import FruitstandError, UsageError

app = typer.Typer(
    help="Train an image classifier, prove it, and serve it at high throughput.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Prepare image folders, and check them.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")


class Split(StrEnum):
    """Parts of a prepared folder."""

    train = "train"
    val = "val"
    test = "test"


class SplitKind(StrEnum):
    """What is held out for the test."""

    classic = "classic"
    object = "object"
    film = "film"


class Validation(StrEnum):
    """How validation is cut from Training."""

    film = "film"
    frame = "frame"


class LabelLevel(StrEnum):
    """Which folder level is the class, where a data set has two."""

    fruit = "fruit"
    variety = "variety"


def main() -> None:
    """Run the command; turn every error of ours into one line and an exit code."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    logging.getLogger("onnxscript").setLevel(logging.WARNING)
    logging.getLogger("onnx_ir").setLevel(logging.WARNING)
    if hasattr(sys.stdout, "reconfigure"):  # a file name may hold bytes that are no UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except FruitstandError as exc:
        print(f"fruitstand: error: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)
    except OSError as exc:
        print(f"fruitstand: error: {exc.filename or 'input or output'}: {exc.strerror}", file=sys.stderr)
        sys.exit(1)


def _print_metrics(metrics: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(metrics)
        return
    for key in ("data_source", "split", "num_images", "top1", "top5", "macro_f1", "ece"):
        value = metrics[key]
        print(f"{key:12} {value:.4f}" if isinstance(value, float) else f"{key:12} {value}")
    worst = sorted(metrics["per_class"].items(), key=lambda item: item[1]["recall"])[:5]
    print("lowest recall: " + ", ".join(f"{label} {row['recall']:.3f}" for label, row in worst))


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Options of the command itself."""
    if version:
        print(__version__)
        raise typer.Exit


@data_app.command()
def prepare(
    source: Annotated[str, typer.Option(help="generated, kaggle, or a Fruits-360 folder or zip.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    split: Annotated[
        SplitKind, typer.Option(help="For Test: the data set's own, whole varieties, or whole films.")
    ] = SplitKind.classic,
    validation: Annotated[
        Validation,
        typer.Option(help="Whole films or the middle of each, or one frame in ten (classic only)."),
    ] = Validation.film,
    subset: Annotated[
        str, typer.Option(help="Of several data sets the one with this in its path, such as original-size.")
    ] = "",
    label_level: Annotated[
        LabelLevel, typer.Option(help="Class level of two-level data.")
    ] = LabelLevel.fruit,
    num_classes: Annotated[int, typer.Option(help="Classes to paint (generated only).")] = 12,
    images_per_class: Annotated[int, typer.Option(help="Images to paint a class (generated only).")] = 200,
    seed: Annotated[int, typer.Option(help="Of the painter and of the split.")] = 0,
    as_json: Json = False,
) -> None:
    """Arrange images and labels, split them, write the manifest and a report."""
    with needs("train"):
        from training.prepare import prepare_data

        report: dict[str, Any] = prepare_data(
            source=source,
            out=out,
            split=split.value,
            validation=validation.value,
            subset=subset,
            label_level=label_level.value,
            num_classes=num_classes,
            images_per_class=images_per_class,
            seed=seed,
        )
    if as_json:
        print_json(report)
        return
    if report["generated"]:
        print("generated images: painted by a program, no real fruit; good for a trial, not for conclusions")
    counts = ", ".join(f"{split} {count}" for split, count in report["num_images"].items())
    print(f"{out}: {report['num_classes']} classes; {counts}")
    details = report["split_details"]
    print(f"split {report['split_kind']}: test is {details['test']}; validation is {details['validation']}")
    for label in details["left_out"]:
        print(f"left out class {label!r}: nothing of it can be held out, it has only one variety or film")
    for twin in report["twins"]:
        print(
            f"left out {twin['object']!r}: its {twin['num_images']} images are"
            f" {'of the same films as' if 'shared' in twin else 'byte for byte'} those of {twin['same_as']!r}"
        )
    if report["num_skipped"]:
        print(f"skipped {report['num_skipped']} files that cannot be decoded:")
        for one in report["skipped"]:
            print(f"  {one['file']}: {one['reason']}")


@data_app.command()
def check(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Prepared folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the reports; default: DIR/check.")] = None,
    as_json: Json = False,
) -> None:
    """Look for damage, duplicates and leaks; exit 1 when a split is not what it claims."""
    with needs("train"):
        from training.check import check_data

        result: dict[str, Any] = check_data(directory, out=out)
    if as_json:
        print_json(result)
    else:
        print("\n".join(result["summary"]))
        print(f"report: {(out or directory / 'check') / 'check.html'}")
    for failure in result["failures"]:
        print(f"fruitstand: error: {failure}", file=sys.stderr)
    if not result["ok"]:
        raise typer.Exit(1)


@app.command()
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


@app.command()
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
        answers = client.classify(paths, top_k=num_classes + 1)
        for one in track(answers, total=len(paths), description="classify"):
            yield one.error or {rank.label: rank.probability for rank in one.top_k}


@app.command()
def export(
    run: Annotated[Path, typer.Option(help="Finished run.")],
    repository: Repository = Path("model_repository"),
    variants: Annotated[str, typer.Option(help="Comma-separated.")] = "fp32,int8,fp16",
    data: Annotated[Path | None, typer.Option(help="Prepared folder; default: the run's own.")] = None,
    compare_int8: Annotated[
        bool, typer.Option("--compare-int8", help="Measure every way to quantise, take the best.")
    ] = False,
    sign: SignKey = None,
    as_json: Json = False,
) -> None:
    """Turn a run into ONNX, check it, and publish it as the next version."""
    with needs("export"):
        from export.export import export as run_export

        names = tuple(name.strip() for name in variants.split(","))
        result = run_export(
            run,
            repository=repository,
            variants=names,
            data_directory=data,
            compare_int8=compare_int8,
            sign_key=sign,
        )
    if as_json:
        print_json(result)
        return
    for gate in result["gates"]:
        allowed = f"{gate['kind'].replace('_', ' ')} {gate['limit']:.4g}"
        print(f"passed {gate['name']}: {gate['value']:.4g}, allowed {allowed}")
    if int8 := result["reports"].get("int8"):
        for attempt in int8["attempts"]:
            for engine, one in attempt["engines"].items():
                print(
                    f"int8 {attempt['choice']} on {engine}: top1 {one['top1']:.4f}, agreement"
                    f" {one['top1_agreement']:.4f}, {one['speedup_over_fp32']:.2f} x fp32"
                )
        print(f"int8: {int8['choice']}, served by {int8['engine']}")
    print(f"published version {result['version']} in {result['repository']}")


@app.command()
def serve(
    repository: Repository = Path("model_repository"),
    grpc_port: Port = 8001,
    http_port: Port = 8000,
    metrics_port: Port = 8002,
    config_name: Annotated[str | None, typer.Option(help="Of configs/NAME.pbtxt, such as gpu.")] = None,
    log: Annotated[Path | None, typer.Option(help="Append tritonserver's log to this file.")] = None,
    trusted_keys: TrustedKeys = None,
) -> None:
    """Serve a model repository in the foreground; one JSON line on stdout says when it is ready."""
    with needs("serve-cpu"):
        from serving.serve import serve as run_server

        run_server(
            repository,
            grpc_port=grpc_port,
            http_port=http_port,
            metrics_port=metrics_port,
            config_name=config_name,
            log_path=log,
            trusted_keys=trusted_keys,
        )


@app.command()
def classify(
    images: Annotated[list[str], typer.Argument(help="Files, folders, patterns, or - for paths on stdin.")],
    url: Url = "127.0.0.1:8001",
    top_k: Annotated[int, typer.Option(min=1, help="Classes in each answer.")] = 5,
    output_format: Annotated[str, typer.Option("--format", help="table, jsonl or csv.")] = "table",
    out: Annotated[Path | None, typer.Option(help="File to write; default: stdout.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images in one request, 1 to 64.")] = 32,
    in_flight: Annotated[int, typer.Option(help="Requests under way at once.")] = 4,
    deadline_s: Annotated[float, typer.Option(help="For each request, seconds.")] = 30.0,
) -> None:
    """Classify images with a served model; exit 1 when an image got no answer."""
    with needs("client"):
        from fruitstand_client.classify import classify_paths

        num_failed = classify_paths(
            arguments=images,
            url=url,
            top_k=top_k,
            output_format=output_format,
            out=out,
            batch_size=batch_size,
            in_flight=in_flight,
            deadline_s=deadline_s,
        )
    if num_failed:
        raise typer.Exit(1)
