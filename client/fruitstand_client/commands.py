"""`fruitstand classify`."""

from pathlib import Path
from typing import Annotated

import typer

from fruitstand.cli_options import Ca, Cert, ServedName, Url, connection, needs
from fruitstand.errors import UsageError
from fruitstand.repository.model_names import DEFAULT_NAME, names_for


def classify(
    images: Annotated[
        list[str],
        typer.Argument(help="Files, folders, patterns, zip, tar, or - for a list of paths on stdin."),
    ],
    url: Url = "127.0.0.1:8001",
    name: ServedName = DEFAULT_NAME,
    top_k: Annotated[int, typer.Option(min=1, help="Classes in each answer.")] = 5,
    output_format: Annotated[str, typer.Option("--format", help="table, jsonl, csv or parquet.")] = "table",
    out: Annotated[Path | None, typer.Option(help="File to write; default: stdout.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the --out of an interrupted run.")
    ] = False,
    sheet: Annotated[
        Path | None, typer.Option(help="Image file for a contact sheet of the first 200, such as sheet.png.")
    ] = None,
    explain: Annotated[
        Path | None, typer.Option(help="Folder for pictures that show why; the server needs an explainer.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images in one request, 1 to 64.")] = 32,
    in_flight: Annotated[int, typer.Option(help="Requests in flight.")] = 4,
    shrink: Annotated[
        bool, typer.Option("--shrink", help="Shrink large images to 512 pixels on the shorter side.")
    ] = False,
    abstain: Annotated[
        bool, typer.Option("--abstain", help="Give no label to an image of no known class.")
    ] = False,
    deadline_s: Annotated[float, typer.Option(help="Seconds for each request and its retries.")] = 30.0,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """Classify images with a served model; exit 1 if an image got no answer.

    An API key is read from the environment variable FRUITSTAND_API_KEY; it leaves this machine only with --ca
    or --cert.
    """
    with needs("client"):
        from fruitstand_client.command.classify import Output, classify_paths

        if named := next((one for one in images if "://" in one), None):
            raise UsageError(f"{named}: is a URL; download the images first, then name the files")
        num_failed = classify_paths(
            images,
            url=url,
            top_k=top_k,
            output=Output(format=output_format, path=out, resume=resume, sheet=sheet, explain=explain),
            batch_size=batch_size,
            in_flight=in_flight,
            model=names_for(name).classifier,
            shrink=shrink,
            abstain=abstain,
            deadline_s=deadline_s,
            **connection(url, ca, cert),
        )
    if num_failed:
        raise typer.Exit(1)
