"""The product's own commands, as a user calls them."""

import json
import shlex
import subprocess
import sys
from typing import Any

from fruitstand.errors import ServerError

TIMEOUT_S = 1800


def fruitstand(*words: object) -> list[str]:
    """The command line of a verb."""
    return [sys.executable, "-m", "fruitstand", *map(str, words)]


def run(*words: object, timeout_s: float = TIMEOUT_S) -> "subprocess.CompletedProcess[str]":
    """Run a verb to its end, however it ends; one that does not end is told to, and then killed."""
    process = subprocess.Popen(fruitstand(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def must(*words: object) -> str:
    """Run a verb; what it printed.

    Raises:
        ServerError: it failed.
    """
    done = run(*words)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ServerError(f"'fruitstand {' '.join(map(str, words[:2]))}' failed: {last[0]}")
    return done.stdout


class Starter:
    """Runs verbs from a process of its own, a context.

    Python waits with its lock held until what it starts has begun, and the callers of a load live in its
    threads: with little idle time they would send late, and take that for the server's doing.
    """

    def __init__(self) -> None:
        """Start it."""
        self._shell = subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Starter":
        return self

    def __exit__(self, *_: object) -> None:
        self._shell.communicate(timeout=TIMEOUT_S)

    def must(self, *words: object) -> None:
        """Run a verb to its end; what it prints goes to stderr.

        Raises:
            ServerError: it failed.
        """
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"timeout {TIMEOUT_S} {shlex.join(fruitstand(*words))} >&2; echo $?\n")
        self._shell.stdin.flush()
        if (status := self._shell.stdout.readline().strip()) != "0":
            raise ServerError(f"'fruitstand {' '.join(map(str, words[:2]))}' failed, exit status {status}")


def document(*words: object) -> Any:
    """Run a verb with --json; what it printed.

    Raises:
        ServerError: it failed.
    """
    return json.loads(must(*words, "--json"))
