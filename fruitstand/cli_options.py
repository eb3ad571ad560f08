"""What the commands share: flags, JSON output, and the message about missing packages."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from fruitstand.contract import API_KEY_VARIABLE
from fruitstand.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
Url = Annotated[str, typer.Option(envvar="FRUITSTAND_URL", help="HOST:PORT of the server's gRPC endpoint.")]
Ca = Annotated[
    Path | None, typer.Option(help="TLS: PEM file of the CA to trust, or 'system' for public CAs.")
]
Cert = Annotated[Path | None, typer.Option(help="TLS: PEM file with this client's certificate and key.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 chooses a free one.")]
Repository = Annotated[Path, typer.Option(help="Model repository.")]
NewName = Annotated[
    str | None,
    typer.Option("--name", help="Of a new repository: birds makes birds_classifier. Default: fruit."),
]
ServedName = Annotated[
    str, typer.Option("--name", envvar="FRUITSTAND_NAME", help="Of one classifier among several: birds.")
]
ServedNames = Annotated[
    list[str] | None,
    typer.Option(
        "--name",
        envvar="FRUITSTAND_NAME",
        help="Of a classifier; repeatable. HTTP asks the first one.",
    ),
]
SignKey = Annotated[Path | None, typer.Option(help="Ed25519 private key to sign the version with.")]
MaxSlowdown = Annotated[
    float, typer.Option(min=0, help="Largest slowdown against the served version, as a factor.")
]
TrustedKeys = Annotated[
    Path | None,
    typer.Option(
        envvar="FRUITSTAND_TRUSTED_KEYS",
        help="Folder with public keys; refuse versions that none of them signed.",
    ),
]


@contextlib.contextmanager
def needs(extra: str | None = None) -> Iterator[None]:
    """Turn a failed import into an error that says what to install.

    The extra has the packages that the code needs; without one only a stage can be missing.

    Raises:
        UsageError: a stage or a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        from fruitstand.cli import VERBS

        missing = (exc.name or "").partition(".")[0]
        # A checkout has all of these; the wheel has only the client.
        rooms = {verb.module.partition(".")[0] for verbs in VERBS.values() for verb in verbs.values()}
        if missing in rooms:
            raise UsageError(
                f"the {missing} stage runs from a checkout: clone the project and run 'make setup'"
            ) from exc
        if extra is None:
            raise
        raise UsageError(f"{missing} is not installed: pip install 'fruitstand[{extra}]'") from exc


def connection(url: str | None, ca: Path | None, cert: Path | None) -> dict[str, Any]:
    """Client settings: TLS from the flags, and the API key from the environment.

    Raises:
        UsageError: TLS flags without a server.
    """
    tls = None
    if ca is not None or cert is not None:
        if url is None:
            raise UsageError("--ca and --cert need a server: give it with --url, or omit them")
        from fruitstand.network.tls import Tls

        # Absolute paths, because processes with another working directory open them too.
        trusted = None if ca is None or ca == Path("system") else ca.absolute()
        tls = Tls(ca=trusted, certificate=None if cert is None else cert.absolute())
    return {"tls": tls, "api_key": os.environ.get(API_KEY_VARIABLE)}


def print_json(value: Any) -> None:
    """Print a result as one JSON document on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_result(value: Any, *lines: str, as_json: bool) -> None:
    """Print a result on stdout: as one JSON document, or in these lines."""
    if as_json:
        print_json(value)
        return
    for line in lines:
        print(line)
