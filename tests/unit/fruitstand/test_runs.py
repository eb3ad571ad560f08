import shutil
from pathlib import Path

import pytest

from fruitstand.errors import ArtefactError
from fruitstand.runs import META_NAME, WEIGHTS_NAME, Run, read_run


def test_a_finished_run_is_read(run: Run) -> None:
    """Weights, labels and contract come from the folder alone."""
    assert run.model_name == "resnet10t"
    assert len(run.labels) == 4
    assert run.preprocessing.input_size == (100, 100)


def test_a_half_written_run_is_refused(run: Run, tmp_path: Path) -> None:
    """A run without its last file is not finished, and the message says how to finish it."""
    copy = shutil.copytree(run.directory, tmp_path / "run")
    (copy / META_NAME).unlink()
    with pytest.raises(ArtefactError, match=r"unfinished.*--resume"):
        read_run(copy)


def test_altered_weights_are_refused(run: Run, tmp_path: Path) -> None:
    """One flipped byte in the weights is noticed."""
    copy = shutil.copytree(run.directory, tmp_path / "run")
    content = bytearray((copy / WEIGHTS_NAME).read_bytes())
    content[-1] ^= 1
    (copy / WEIGHTS_NAME).write_bytes(content)
    with pytest.raises(ArtefactError, match="altered"):
        read_run(copy)


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    """The message says what to do."""
    with pytest.raises(ArtefactError, match="fruitstand train"):
        read_run(tmp_path / "nothing")
