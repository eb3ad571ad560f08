"""Which commit of this project made an artefact."""

import subprocess
from pathlib import Path


def git_commit(directory: Path) -> str | None:
    """The commit of the checkout around `directory`, with "+" when it has changes; None outside one."""
    command = ["git", "-C", str(directory), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
