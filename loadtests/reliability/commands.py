"""The product's own commands, as a user calls them."""

import json
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


def document(*words: object) -> Any:
    """Run a verb with --json; what it printed.

    Raises:
        ServerError: it failed.
    """
    return json.loads(must(*words, "--json"))
