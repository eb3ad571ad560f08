"""The `fruitstand` command in this process, where a process of its own is not the claim."""

import contextlib
import io
import subprocess
import sys

import pytest


def fruitstand(*arguments: object, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a verb as `fruitstand ARGUMENTS` does, without the seconds that a new process spends on imports.

    Log lines go to pytest, not to `stderr`.

    Returns:
        What `subprocess.run` gives for the command.
    """
    from fruitstand.cli import main

    words = list(map(str, arguments))
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["fruitstand", *words])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), "utf-8"))
        status: object = 0
        try:
            main()
        except SystemExit as exc:
            status = exc.code
    said, complained = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    number = status if isinstance(status, int) else int(status is not None)
    return subprocess.CompletedProcess(words, number, said, complained)
