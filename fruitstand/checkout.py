"""Which commit of this project, and which locked packages, made an artefact."""

import subprocess
from pathlib import Path

from fruitstand.artefacts import sha256_file


def git_commit(directory: Path) -> str | None:
    """The commit of the checkout around `directory`, with "+" when it has changes; None outside one."""
    command = ["git", "-C", str(directory), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def lock_sha256(directory: Path) -> str | None:
    """The sha256 of the checkout's lock file, as hex; None outside a checkout."""
    path = directory / "requirements.lock"
    return sha256_file(path) if path.is_file() else None
