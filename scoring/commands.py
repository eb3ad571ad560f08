"""The commands `fruitstand score` and `fruitstand replay`: many images at once, without a live server."""

from pathlib import Path
from typing import Annotated

import typer

from fruitstand.cli_options import (
    Ca,
    Cert,
    Json,
    Repository,
    ServedName,
    TrustedKeys,
    connection,
    needs,
    print_result,
)


def score(
    source: Annotated[
        Path, typer.Argument(help="Folder of images, Parquet files or tars; or one such file.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the answers; a stopped job in it continues.")],
    repository: Annotated[
        Path | None, typer.Option(help="Score with this model repository's served version.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Score with the server at HOST:PORT instead.")] = None,
    name: ServedName | None = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes; default: one per core; 0: this one, without Ray.")
    ] = None,
    partition_size: Annotated[int, typer.Option(min=1, help="Images in one output file.")] = 512,
    top_k: Annotated[int, typer.Option(min=1, help="Classes in each answer.")] = 5,
    columns: Annotated[
        str, typer.Option(help="IMAGE,ID: the Parquet columns of image and id.")
    ] = "image,path",
    address: Annotated[
        str | None, typer.Option(envvar="RAY_ADDRESS", help="Ray cluster to use; default: start Ray here.")
    ] = None,
    trusted_keys: TrustedKeys = None,
    ca: Ca = None,
    cert: Cert = None,
    as_json: Json = False,
) -> None:
    """Score any number of images offline, each exactly once, even if the job is killed and run again.

    The API key for a server comes from the environment variable FRUITSTAND_API_KEY. It is sent only over TLS,
    which --ca or --cert switches on. Each machine of a cluster needs this variable and the files of --ca and
    --cert.
    """
    with needs("score"):
        from scoring.score import score as run_score

        result = run_score(
            source,
            out=out,
            repository=repository,
            url=url,
            name=name,
            num_workers=workers,
            partition_size=partition_size,
            top_k=top_k,
            columns=columns,
            address=address,
            trusted_keys=trusted_keys,
            tls=connection(url, ca, cert)["tls"],
        )
    rate = result["num_scored_now"] / max(result["total_s"], 1e-9)
    line = (
        f"{out}: {result['num_predictions']} images answered, {result['num_errors']} rejected"
        f" ({result['num_scored_now']} in this run, {rate:.0f} images/s), model version"
        f" {result['model']['version']}"
    )
    rejected = [f"rejected images: {out / 'errors'}"] if result["num_errors"] else []
    print_result(result, line, *rejected, as_json=as_json)


def replay(
    samples: Annotated[Path, typer.Argument(help="Folder where a server recorded (FRUITSTAND_SAMPLES).")],
    version: Annotated[int, typer.Option(min=1, help="The version to try.")],
    against: Annotated[
        int | None, typer.Option(min=1, help="The version to compare with; default: the served one.")
    ] = None,
    repository: Repository = Path("model_repository"),
    rate: Annotated[
        str | None,
        typer.Option(
            help="On a server of its own: recorded, max, or images/s; default: offline, in this process."
        ),
    ] = None,
    max_images: Annotated[
        int, typer.Option(min=1, help="Largest number of images; the newest are taken.")
    ] = 1000,
    out: Annotated[Path | None, typer.Option(help="Folder for replay.json and replay.html.")] = None,
    trusted_keys: TrustedKeys = None,
    as_json: Json = False,
) -> None:
    """Send recorded traffic to two versions and compare answers, confidence and latency."""
    with needs("serve-cpu"):
        from scoring.replay import replay as run_replay
        from scoring.replay_report import summary

        result = run_replay(
            samples,
            repository=repository,
            version=version,
            against=against,
            rate=rate,
            max_images=max_images,
            out=out,
            trusted_keys=trusted_keys,
        )
    page = [] if out is None else [f"page: {out / 'replay.html'}"]
    print_result(result.to_json(), *summary(result), *page, as_json=as_json)
