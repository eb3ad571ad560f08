import subprocess
import sys
from pathlib import Path

import pytest

from fruitstand.artefacts import (
    atomic_directory,
    atomic_file,
    read_json,
    sha256_file,
    sweep_temporaries,
    write_bytes,
    write_json,
)
from fruitstand.errors import ArtefactError


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    """The old content stays until the new one is complete."""
    target = tmp_path / "file"
    write_bytes(target, b"old")
    with pytest.raises(RuntimeError), atomic_file(target) as temporary:
        temporary.write_bytes(b"half of the n")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    """A reader never sees a directory that is being filled."""
    target = tmp_path / "1"
    with pytest.raises(RuntimeError), atomic_directory(target) as staged:
        (staged / "model.onnx").write_bytes(b"half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with atomic_directory(target) as staged:
        (staged / "model.onnx").write_bytes(b"whole")
        assert not target.exists()
    assert (target / "model.onnx").read_bytes() == b"whole"


def test_a_directory_once_made_is_never_changed(tmp_path: Path) -> None:
    """Publishing onto an existing version is refused."""
    with atomic_directory(tmp_path / "1"):
        pass
    with pytest.raises(ArtefactError, match="exists already"), atomic_directory(tmp_path / "1"):
        pass


def test_the_litter_of_a_killed_writer_is_swept(tmp_path: Path) -> None:
    """Kill -9 leaves a temporary name behind; the next run removes it, and nothing of a living writer."""
    script = (
        "import os, signal, sys; from pathlib import Path; from fruitstand.artefacts import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])) as t: t.write_bytes(b'x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "file")], check=False)
    assert len(list(tmp_path.glob(".tmp-*"))) == 1
    with atomic_file(tmp_path / "other") as living:
        living.write_bytes(b"y")
        assert len(sweep_temporaries(tmp_path)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_json_is_read_back_and_damage_is_named(tmp_path: Path) -> None:
    """A torn JSON file is an error with its path, no stack trace of a parser."""
    path = tmp_path / "meta.json"
    write_json(path, {"label": "Äpfel"})
    assert read_json(path) == {"label": "Äpfel"}
    path.write_text('{"label": ')
    with pytest.raises(ArtefactError, match=r"meta\.json"):
        read_json(path)


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    """The digest is the standard one."""
    write_bytes(tmp_path / "file", b"abc")
    assert sha256_file(tmp_path / "file").startswith("ba7816bf8f01cfea")
