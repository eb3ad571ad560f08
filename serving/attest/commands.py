"""The verb `fruitstand attest`."""

from pathlib import Path
from typing import Annotated

import typer

from fruitstand.cli_options import Ca, Cert, Json, ServedName, connection, needs, print_json


def attest(
    url: Annotated[str, typer.Argument(envvar="FRUITSTAND_URL", help="HOST:PORT of the gRPC endpoint.")],
    repository: Annotated[
        Path | None, typer.Option(help="Model repository it should serve; without it fewer checks run.")
    ] = None,
    name: ServedName | None = None,
    out: Annotated[Path | None, typer.Option(help="Folder for attest.json and attest.md.")] = None,
    as_json: Json = False,
    quick: Annotated[bool, typer.Option("--quick", help="About 20 s: fewer images, shorter loads.")] = False,
    wait_s: Annotated[float, typer.Option(min=0, help="Seconds to wait for the server to be ready.")] = 0.0,
    min_throughput: Annotated[
        float | None,
        typer.Option(min=0, help="Images/s required at 64 in flight; default: a tenth of this machine's."),
    ] = None,
    skip: Annotated[str, typer.Option(help="Comma-separated checks to leave out, such as queue_limit.")] = "",
    strict: Annotated[bool, typer.Option("--strict", help="Treat warnings as failures.")] = False,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """Check a running server against its model repository; exit 1 when it breaks a promise.

    The checks send bad images and overfill the queue: do not run them against a server in production use.
    The API key comes from FRUITSTAND_API_KEY.
    """
    with needs("serve-cpu"):
        from serving.attest.attest import attest as run_attest

        report = run_attest(
            url,
            repository=repository,
            name=name,
            quick=quick,
            wait_s=wait_s,
            min_throughput=min_throughput,
            skip=tuple(name.strip() for name in skip.split(",") if name.strip()),
            **connection(url, ca, cert),
        )
    if out is not None:
        report.write(out)
    if as_json:
        print_json(report.to_json())
    else:
        print("\n".join(report.lines()))
    if not report.passed(strict=strict):
        raise typer.Exit(1)
