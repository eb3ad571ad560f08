"""`fruitstand score`: offline scoring."""

from pathlib import Path
from typing import Annotated

import typer

from fruitstand.cli_options import Ca, Cert, Json, TrustedKeys, connection, needs, print_json


def score(
    source: Annotated[
        Path, typer.Argument(help="Folder of images, parquet files or tars; or one such file.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the answers; the same one again goes on.")],
    repository: Annotated[Path | None, typer.Option(help="Score with the version it serves.")] = None,
    url: Annotated[str | None, typer.Option(help="Or ask the server at this HOST:PORT.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes; default: one a processor; 0: this one, without Ray.")
    ] = None,
    partition_size: Annotated[int, typer.Option(min=1, help="Images written together.")] = 512,
    top_k: Annotated[int, typer.Option(min=1, help="Classes in each answer.")] = 5,
    columns: Annotated[str, typer.Option(help="IMAGE,ID of parquet.")] = "image,path",
    address: Annotated[
        str | None, typer.Option(envvar="RAY_ADDRESS", help="Of a Ray cluster; default: start Ray here.")
    ] = None,
    trusted_keys: TrustedKeys = None,
    ca: Ca = None,
    cert: Cert = None,
    as_json: Json = False,
) -> None:
    """Score any number of images offline, each exactly once, whatever is killed on the way.

    A server's API key is read from the environment variable FRUITSTAND_API_KEY; it leaves a machine only with
    --ca or --cert. On a cluster each machine has its own variable, and the files of --ca and --cert.
    """
    with needs("score"):
        from scoring.score import score as run_score

        result = run_score(
            source,
            out=out,
            repository=repository,
            url=url,
            num_workers=workers,
            partition_size=partition_size,
            top_k=top_k,
            columns=columns,
            address=address,
            trusted_keys=trusted_keys,
            tls=connection(url, ca, cert)["tls"],
        )
    if as_json:
        print_json(result)
        return
    rate = result["num_scored_now"] / max(result["total_s"], 1e-9)
    print(
        f"{out}: {result['num_predictions']} images answered, {result['num_errors']} not"
        f" ({result['num_scored_now']} of them now, {rate:.0f} images/s), model version"
        f" {result['model']['version']}"
    )
    if result["num_errors"]:
        print(f"why not: {out / 'errors'}")
