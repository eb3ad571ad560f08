"""The verbs for access to the gateway: `certs dev`, `keys add`, `keys list`, `keys disable`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fruitstand.cli_options import needs, print_json

certs_app = typer.Typer(help="Certificates for TLS.", no_args_is_help=True, rich_markup_mode=None)
keys_app = typer.Typer(help="API keys of the gateway.", no_args_is_help=True, rich_markup_mode=None)

KeyFile = Annotated[Path, typer.Option(help="The key file: api_keys.json in the folder given to --access.")]
Name = Annotated[str, typer.Argument(help="Name of the caller.")]


@certs_app.command()
def dev(
    out: Annotated[Path, typer.Option(help="Folder for ca.crt, server.* and client.*.")],
    hosts: Annotated[str, typer.Option(help="Comma-separated names of the server.")] = "localhost,127.0.0.1",
    days: Annotated[int, typer.Option(min=1, max=825, help="Days until the certificates expire.")] = 30,
) -> None:
    """Make certificates for testing TLS; not for production."""
    with needs("gateway"):
        from serving.gateway.certificates import write_dev_certificates

        write_dev_certificates(out, hosts=hosts.split(","), days=days)
    print(out)


@keys_app.command()
def add(
    name: Name,
    file: KeyFile,
    days: Annotated[
        int | None, typer.Option(min=1, help="Days until the key expires; default: never.")
    ] = None,
    requests_per_s: Annotated[int | None, typer.Option(min=1, help="Quota of this caller.")] = None,
) -> None:
    """Add a caller and print its key; the key is not stored, only its hash."""
    with needs("gateway"):
        from serving.gateway.api_keys import add_api_key

        print(add_api_key(file, name, days=days, requests_per_s=requests_per_s))


@keys_app.command("list")
def list_keys(file: KeyFile) -> None:
    """List callers as JSON, without the key hashes."""
    with needs("gateway"):
        from serving.gateway.api_keys import read_api_keys

        rows = [asdict(key) for key in read_api_keys(file)]
    print_json([{field: value for field, value in row.items() if field != "sha256"} for row in rows])


@keys_app.command()
def disable(name: Name, file: KeyFile) -> None:
    """Disable a caller's key; a running gateway notices within a second."""
    with needs("gateway"):
        from serving.gateway.api_keys import disable_api_key

        disable_api_key(file, name)
