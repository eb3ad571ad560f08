"""`fruitstand data prepare`, `data check`, `train` and `evaluate`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fruitstand.cli_options import Ca, Cert, Json, ServedName, connection, needs, print_json
from fruitstand.errors import UsageError
from fruitstand.repository.model_names import DEFAULT_NAME, names_for

if TYPE_CHECKING:
    from training.evaluate.report import Evaluation

data_app = typer.Typer(
    help="Prepare image folders, and check them.", no_args_is_help=True, rich_markup_mode=None
)


@data_app.command()
def prepare(
    source: Annotated[
        str, typer.Option(help="generated, kaggle, a folder or zip of class folders, or a CSV of path,label.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to create.")],
    split: Annotated[
        Literal["classic", "object", "film"],
        typer.Option(help="Test images: the data set's own split, whole varieties, or whole films."),
    ] = "classic",
    validation: Annotated[
        Literal["film", "frame"],
        typer.Option(help="Validation images: whole films (or the middle of each), or one frame in ten."),
    ] = "film",
    subset: Annotated[
        str,
        typer.Option(help="Pick the data set with this text in its path, such as original-size."),
    ] = "",
    label_level: Annotated[
        Literal["fruit", "variety"], typer.Option(help="Folder level that is the class, if there are two.")
    ] = "fruit",
    num_classes: Annotated[int, typer.Option(help="Classes to generate (generated only).")] = 12,
    images_per_class: Annotated[
        int, typer.Option(help="Images to generate for each class (generated only).")
    ] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the painter and of the split.")] = 0,
    as_json: Json = False,
) -> None:
    """Copy the images, split them, and write the labels, the manifest and a report."""
    with needs("train"):
        from training.data.prepare import prepare_data

        report: dict[str, Any] = prepare_data(
            source=source,
            out=out,
            split=split,
            validation=validation,
            subset=subset,
            label_level=label_level,
            num_classes=num_classes,
            images_per_class=images_per_class,
            seed=seed,
        )
    if as_json:
        print_json(report)
        return
    if report["generated"]:
        print("the images are synthetic: use them to try the pipeline, not to judge accuracy")
    counts = ", ".join(f"{split} {count}" for split, count in report["num_images"].items())
    print(f"{out}: {report['num_classes']} classes; {counts}")
    details = report["split_details"]
    print(f"split {report['split_kind']}: test is {details['test']}; validation is {details['validation']}")
    if report["split_kind"] == "film":
        print("a film is a series of images that belong together, such as 07_001.jpg to 07_090.jpg")
    for label in details["left_out"]:
        print(f"left out class {label!r}: it has only one variety or film, so none can be held out")
    for label, images in report["images_per_class"].items():
        if not images.get("test") and label not in details["left_out"]:
            print(f"class {label!r} has no image in Test, so no evaluation covers it")
    for twin in report["twins"]:
        print(
            f"left out {twin['object']!r}: its {twin['num_images']} images are"
            f" {'of the same films as' if 'shared' in twin else 'byte for byte'} those of {twin['same_as']!r}"
        )
    if report["converted_from"]:
        formats = ", ".join(f"{count} from {name}" for name, count in report["converted_from"].items())
        print(f"converted to PNG: {formats}")
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
    """Find damaged files, duplicates and leaks between splits; exit 1 if the split breaks its own rule."""
    with needs("train"):
        from training.data.check.check import check_data

        result = check_data(directory, out=out)
    if as_json:
        print_json(result.to_json())
    else:
        print("\n".join(result.summary))
        print(f"report: {(out or directory / 'check') / 'check.html'}")
    for failure in result.failures:
        print(f"fruitstand: error: {failure}", file=sys.stderr)
    if not result.ok:
        raise typer.Exit(1)


MAX_CLASSES = 1 << 16
"""More classes than any model has: a request for the top MAX_CLASSES returns all of them."""


def train(
    out: Annotated[Path, typer.Option(help="Run folder to create, such as runs/first.")],
    data: Annotated[Path | None, typer.Option(help="Prepared folder.")] = None,
    model: Annotated[str | None, typer.Option(help="Any timm image classifier; default: resnet18.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the train split; default: the recipe's.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="classic, object, or auto, which picks one to match the data's split.")
    ] = "auto",
    weights: Annotated[
        str | None,
        typer.Option(help="Start from a safetensors file, a checkpoint, or hf-hub:OWNER/NAME."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Any field of training/fit/config.py; repeatable."),
    ] = None,
    finetune_from: Annotated[Path | None, typer.Option(help="Start from the weights of this run.")] = None,
    devices: Annotated[
        int, typer.Option(help="Processes; each gets one GPU or an equal share of the cores.")
    ] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run; needs --out only.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run.")] = False,
    as_json: Json = False,
) -> None:
    """Train a timm image classifier."""
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    given = {"model_name": model, "epochs": epochs, "weights": weights}
    given = {key: value for key, value in given.items() if value is not None}
    with needs("train"):
        from training.fit.config import resolve_config
        from training.fit.train import read_resumed
        from training.fit.train import train as run_training

        try:
            if resume:
                again = {"recipe": recipe, "data": data, "finetune_from": finetune_from}
                config, data, finetune_from, devices = read_resumed(out, settings or [], given, **again)
            elif data is None:
                raise UsageError("--data is missing: the folder that 'fruitstand data prepare' made")
            else:
                config = resolve_config(recipe, data, settings or [], given)
        except ValueError as exc:
            raise UsageError(str(exc)) from exc
        meta = run_training(
            config,
            data_directory=data,
            out=out,
            finetune_from=finetune_from,
            devices=devices,
            resume=resume,
            overwrite=overwrite,
        )
    if meta is None:  # only the first process has the result
        return
    split, metrics = next(iter(meta["metrics"].items()))
    if as_json:
        print_json({"run": str(out), "train_s": meta["train_s"], "split": split, **metrics})
    else:
        print(f"{out}: {config.model_name}, {meta['train_s']:.0f} s, {split} top1 {metrics['top1']:.4f}")


def evaluate(
    run: Annotated[Path | None, typer.Option(help="Evaluate this run folder offline.")] = None,
    url: Annotated[
        str | None, typer.Option(help="Evaluate a server: HOST:PORT of its gRPC endpoint.")
    ] = None,
    name: ServedName = DEFAULT_NAME,
    data: Annotated[Path | None, typer.Option(help="Prepared folder; default: the run's own.")] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Split to evaluate.")] = "test",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the report; default: RUN/evaluation/DATA-SPLIT, and update the model card."
        ),
    ] = None,
    ca: Ca = None,
    cert: Cert = None,
    as_json: Json = False,
) -> None:
    """Measure the accuracy of a run or of a server; both get the same numbers and the same report.

    The API key for a server comes from the environment variable FRUITSTAND_API_KEY. It is sent only over TLS,
    which --ca or --cert switches on.
    """
    if (run is None) == (url is None):
        raise UsageError("give either --run or --url")
    settings = connection(url, ca, cert) | {"model": names_for(name).classifier}
    with needs("train"):
        from training.evaluate.evaluate import evaluate_answers, evaluate_run

        if run is not None:
            result = evaluate_run(run, data_directory=data, split=split, out=out)
        elif data is None or url is None:
            raise UsageError("--url needs --data: the prepared folder whose images to send")
        else:
            result = evaluate_answers(
                data, split, lambda paths: _ask_server(url, paths, settings), out=out, url=url
            )
    if as_json:
        print_json(result.to_json())
    else:
        _print_evaluation(result)


def _ask_server(
    url: str, paths: list[Path], settings: dict[str, Any]
) -> Iterator[tuple[dict[str, float], float | None] | str]:
    """For each image, the served probabilities by label and `known`, or the error message."""
    with needs("client"):
        from fruitstand_client import Client
    from fruitstand.progress import track

    with Client(url, **settings) as client:
        answers = client.classify_stream(paths, top_k=MAX_CLASSES)
        for one in track(answers, total=len(paths), description="classify"):
            yield one.error or ({rank.label: rank.probability for rank in one.top_k}, one.known)


def _print_evaluation(result: "Evaluation") -> None:
    """Print the scores beside those of the baselines."""
    baseline = result.baseline
    nearest, majority = baseline["nearest_neighbour"], baseline["majority"]
    what = f"{result.data_source}, {result.split_kind} split, {result.split}"
    print(f"{what}: {result.num_images} images")
    print(f"{'':12} {'model':>8} {'1-NN':>8} {'majority':>8}")
    for key in ("top1", "macro_f1"):
        print(f"{key:12} {getattr(result, key):8.4f} {nearest[key]:8.4f} {majority[key]:8.4f}")
    for key in ("top5", "ece"):
        print(f"{key:12} {getattr(result, key):8.4f}")
    if result.known is not None:
        print(f"{'known':12} {result.known:8.4f}")
    low, high = result.top1_interval
    print(f"95 % confidence interval of top1: {low:.4f} to {high:.4f}, assuming independent images")
    seen = result.seen_in_training
    if seen is not None:
        counts = ", ".join(f"{what} {count}" for what, count in seen.items())
        print(f"images whose file, film or object was in the training split: {counts}")
    worst = sorted(result.per_class.items(), key=lambda item: (item[1]["recall"], item[0]))[:5]
    print("lowest recall: " + ", ".join(f"{label} {row['recall']:.3f}" for label, row in worst))
    for pair in result.confusions[:3]:
        print(f"{pair.truth!r} answered as {pair.answer!r}: {pair.count} times")
