import functools
import hashlib
import http.server
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "deploy" / "kubernetes" / "base" / "fetch_models.py"


@pytest.fixture
def released(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """URL and SHA-256 of an archive on a real server."""
    source, served = tmp_path / "source", tmp_path / "served"
    (source / "fruit_resnet" / "1").mkdir(parents=True)
    (source / "fruit_resnet" / "1" / "model.onnx").write_bytes(b"weights")
    served.mkdir()
    with tarfile.open(served / "repository.tar", "w") as tar:
        tar.add(source, arcname=".")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        digest = hashlib.sha256((served / "repository.tar").read_bytes()).hexdigest()
        yield f"http://127.0.0.1:{server.server_port}/repository.tar", digest
        server.shutdown()


def fetch(url: str, digest: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the script as the init container does."""
    folder.mkdir()
    environment = {**os.environ, "URL": url, "SHA256": digest}
    command = [sys.executable, "-I", SCRIPT, folder]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_released_archive_is_unpacked(released: tuple[str, str], tmp_path: Path) -> None:
    """And the archive itself does not stay."""
    folder = tmp_path / "models"
    assert fetch(*released, folder).returncode == 0
    assert (folder / "fruit_resnet" / "1" / "model.onnx").read_bytes() == b"weights"
    assert [path.name for path in folder.iterdir()] == ["fruit_resnet"]


def test_another_archive_is_refused_and_leaves_nothing(released: tuple[str, str], tmp_path: Path) -> None:
    """The line names both digests and where they are set."""
    url, digest = released
    done = fetch(url, "0" * 64, tmp_path / "models")
    assert done.returncode == 1
    assert digest in done.stderr
    assert "model-source" in done.stderr
    assert list((tmp_path / "models").iterdir()) == []


def test_an_archive_that_is_not_there_is_one_line_without_a_traceback(
    released: tuple[str, str], tmp_path: Path
) -> None:
    """After a few tries."""
    done = fetch(released[0].replace("repository", "nothing"), "0" * 64, tmp_path / "models")
    assert done.returncode == 1
    assert "404" in done.stderr
    assert "cannot be fetched" in done.stderr
    assert "Traceback" not in done.stderr
