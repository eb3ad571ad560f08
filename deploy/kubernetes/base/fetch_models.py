"""Fetch the model repository's archive, verify its SHA-256, and unpack it.

Runs in an init container with the standard library only. URL and SHA256 come from the environment, the folder
is the first argument.
"""

import hashlib
import os
import sys
import tarfile
import time
import urllib.request
from pathlib import Path

TRIES = 5
PAUSE_S = 2.0
TIMEOUT_S = 30.0


def fetch(url: str, archive: Path) -> str:
    """Download a file; returns its SHA-256 as hex digits."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, archive.open("wb") as file:
        while block := answer.read(1 << 20):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def fetch_patiently(url: str, archive: Path) -> str:
    """Download a file; retries after a pause."""
    for left in reversed(range(TRIES)):
        try:
            return fetch(url, archive)
        except OSError as exc:
            print(f"{url}: {exc}; {left} tries left", file=sys.stderr)
            time.sleep(PAUSE_S if left else 0)
    sys.exit(f"{url}: cannot be fetched; check the ConfigMap model-source and the pods' network access")


def main() -> None:
    """Unpack the repository into the folder, or nothing if the checksum differs."""
    folder = Path(sys.argv[1])
    archive = folder / ".archive"
    got, expected = fetch_patiently(os.environ["URL"], archive), os.environ["SHA256"]
    if got != expected:
        archive.unlink()
        sys.exit(f"{os.environ['URL']}: SHA-256 is {got}, expected {expected}; set both in model-source")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    archive.unlink()


if __name__ == "__main__":
    main()
