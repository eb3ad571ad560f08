"""`fruitstand data`: prepare image folders, and check them."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fruitstand.cli_shared import Json, needs, print_json

app = typer.Typer(help="Prepare image folders, and check them.", no_args_is_help=True)


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


@app.command()
def prepare(
    source: Annotated[str, typer.Option(help="generated, kaggle, or a Fruits-360 folder or zip.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    split: Annotated[
        SplitKind, typer.Option(help="For Test: the data set's own, whole varieties, or whole films.")
    ] = SplitKind.classic,
    validation: Annotated[
        Validation,
        typer.Option(help="Whole films or the middle of each, or one frame in ten."),
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
    if report["converted_from"]:
        formats = ", ".join(f"{count} from {name}" for name, count in report["converted_from"].items())
        print(f"converted to PNG: {formats}")
    if report["num_skipped"]:
        print(f"skipped {report['num_skipped']} files that cannot be decoded:")
        for one in report["skipped"]:
            print(f"  {one['file']}: {one['reason']}")


@app.command()
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
