"""The verb `fruitstand adopt`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fruitstand.cli_options import Json, MaxSlowdown, NewName, Repository, SignKey, needs, print_result


def adopt(
    model: Annotated[str, typer.Argument(help="ONNX file of a classifier, or timm:NAME.")],
    labels: Annotated[
        Path | None, typer.Option(help="File with one class per line, or a JSON list, in output order.")
    ] = None,
    preprocessing: Annotated[
        str | None, typer.Option(help="JSON file with input_size, mean, std, ..., or timm:NAME.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of images for int8 and the gates; without it, only fp32 is made."),
    ] = None,
    repository: Repository = Path("model_repository"),
    weights: Annotated[
        Path | None, typer.Option(help="For timm:NAME: a safetensors file instead of the pretrained weights.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the candidate; default: runs/adopted-NAME.")
    ] = None,
    sign: SignKey = None,
    max_slowdown: MaxSlowdown = 1.1,
    name: NewName = None,
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Then promote the version and serve the repository in the foreground."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Publish an ONNX classifier or a timm model as the next version."""
    with needs("export"):
        from export.adopt.adopt import adopt as run_adopt

        result = run_adopt(
            model,
            repository=repository,
            labels=labels,
            preprocessing=preprocessing,
            images=images,
            weights=weights,
            out=out,
            sign_key=sign,
            max_slowdown=max_slowdown,
            name=name,
        )
        if serve:
            from export.publish.promote import promote

            promote(repository, result["version"])
    hidden = ("sha256", "licence")
    found = ", ".join(f"{key} {value}" for key, value in result["adopted"].items() if key not in hidden)
    print_result(
        result,
        f"adopted {found}; {result['num_classes']} classes",
        f"passed {len(result['gates'])} gates",
        *(
            f"{variant}: " + (f"left out, {report['left_out']}" if "left_out" in report else "made")
            for variant, report in result["reports"].items()
        ),
        f"published version {result['version']} in {repository}; without a GPU it serves"
        f" {result['serve']['cpu_model']} on {result['serve']['cpu_engine']}",
        as_json=as_json,
    )
    if serve:
        sys.stdout.flush()
        command = [sys.executable, "-m", "fruitstand", "serve", "--repository", str(repository)]
        os.execv(sys.executable, command)
