"""Run `fruitstand` verbs as processes, as a user would."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import typer
from rich.console import Console

from fruitstand.contract import CPU_CONFIG
from fruitstand.errors import FruitstandError, ServerError

console = Console(stderr=True, highlight=False, soft_wrap=True)


def command_line(measure: Callable[..., object]) -> None:
    """Run a function as a command line; an error becomes one line on stderr and its exit code."""
    try:
        typer.run(measure)
    except FruitstandError as exc:
        print(f"error: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)


def step(*arguments: object) -> dict[str, Any]:
    """Run one `fruitstand` verb and return its JSON result; its log goes to stderr."""
    command = [sys.executable, "-m", "fruitstand", *map(str, arguments), "--json"]
    console.print(f"[bold]{arguments[0]}[/]  fruitstand {' '.join(command[3:])}")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@contextlib.contextmanager
def served(
    repository: Path,
    *,
    log: Path,
    config_name: str = CPU_CONFIG,
    environment: Mapping[str, str] = MappingProxyType({}),
    python: str = sys.executable,
) -> Iterator[str]:
    """Run `fruitstand serve` on free ports; yields its gRPC address.

    `log` is the file for tritonserver's log, `python` the interpreter that runs the server; variables are
    added to this process's environment.

    Raises:
        ServerError: the server exited instead of serving.
    """
    # -P: another environment's Python must not import this process's checkout from the working directory.
    command = [python, "-P", "-m", "fruitstand", "serve", "--repository", str(repository)]
    for port in ("grpc", "http", "metrics"):
        command += [f"--{port}-port", "0"]
    command += ["--log", str(log), "--config-name", config_name]
    console.print(f"[bold]serve[/]  fruitstand {' '.join(command[4:])}")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as process:
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            if not ready:
                raise ServerError(f"'fruitstand serve' exited with status {process.wait()}; see {log}")
            yield json.loads(ready)["grpc"]
        finally:
            process.terminate()
