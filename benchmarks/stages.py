"""The product as a user runs it: `fruitstand` verbs as processes."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

console = Console(stderr=True, highlight=False)


def step(name: str, *arguments: object) -> dict:
    """Run one `fruitstand` verb and return its JSON result; its log goes to stderr as it comes."""
    command = [sys.executable, "-m", "fruitstand", *map(str, arguments), "--json"]
    console.print(f"[bold]{name}[/]  fruitstand {' '.join(command[3:])}")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout)


@contextlib.contextmanager
def served(repository: Path, *, log: Path) -> Iterator[str]:
    """`fruitstand serve` on free ports; its gRPC address.

    Args:
        repository: the model repository.
        log: tritonserver's log goes there.
    """
    command = [sys.executable, "-m", "fruitstand", "serve", "--repository", str(repository)]
    for port in ("grpc", "http", "metrics"):
        command += [f"--{port}-port", "0"]
    command += ["--log", str(log)]
    console.print(f"[bold]serve[/]  fruitstand {' '.join(command[3:])}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            if not ready:
                raise SystemExit(process.wait())
            yield json.loads(ready)["grpc"]
        finally:
            process.terminate()
