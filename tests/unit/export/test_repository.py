import fcntl
import json
import os
from pathlib import Path

import pytest

from export.repository import (
    AUDIT_NAME,
    LOCK_NAME,
    audited,
    check_repository,
    list_versions,
    locked,
    prune,
    read_audit,
    record,
    write_served,
)
from fruitstand.artefacts import sha256_file, write_json
from fruitstand.contract import FRUIT_CLASSIFIER, FRUIT_RESNET, Preprocessing
from fruitstand.errors import ArtefactError, UsageError
from fruitstand.versions import ServingState, published_versions, serving_state


def place(repository: Path, number: int) -> None:
    """A version as publishing leaves it; its model is a few bytes."""
    directory = repository / FRUIT_RESNET / str(number)
    directory.mkdir(parents=True)
    (directory / "model.onnx").write_bytes(b"weights")
    entry = {"sha256": sha256_file(directory / "model.onnx"), "size_bytes": 7}
    manifest = {
        "version": number,
        "model_name": "resnet10t",
        "source_run": {"name": "tiny"},
        "labels": ["Apple", "Pear"],
        "preprocessing": Preprocessing().to_dict(),
        "serve": {"cpu_model": "model.onnx", "cpu_engine": "cpu", "gpu_model": "model.onnx"},
        "files": {"model.onnx": entry},
    }
    write_json(directory / "manifest.json", manifest)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Versions 1 to 3; 2 is served, before it 1 was."""
    path = tmp_path / "repository"
    for number in (1, 2, 3):
        place(path, number)
    write_served(path, ServingState(2, 1))
    return path


def test_the_list_says_which_is_served_and_which_was(repository: Path) -> None:
    """Oldest first."""
    rows = [(row["version"], row["role"], row["size_bytes"]) for row in list_versions(repository)]
    assert rows == [(1, "previous", 7), (2, "served", 7), (3, "", 7)]
    with pytest.raises(UsageError, match="nothing is published"):
        list_versions(repository / "nowhere")


def test_only_one_command_changes_a_repository(repository: Path) -> None:
    """The second is refused at once, and told why."""
    with (repository / LOCK_NAME).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ArtefactError, match="another command"), locked(repository):
            pass
    with locked(repository):
        pass


def test_what_a_killed_command_left_is_put_right(repository: Path) -> None:
    """Temporaries go, also those whose process id lives again; half a promotion is undone."""
    litter = repository / FRUIT_RESNET / f".tmp-{os.getpid()}-00-4"
    litter.mkdir()
    write_served(repository, ServingState(2, 1), also_loaded=(3,))
    config = repository / FRUIT_RESNET / "config.pbtxt"
    assert "versions: [ 2, 3 ]" in config.read_text()
    with locked(repository):
        pass
    assert not litter.exists()
    assert "versions: [ 2 ]" in config.read_text()
    assert serving_state(repository) == ServingState(2, 1)


def test_a_first_version_whose_publishing_was_cut_short_is_served(tmp_path: Path) -> None:
    """It is whole, only nothing was rendered for it."""
    place(tmp_path, 1)
    assert serving_state(tmp_path) is None
    with locked(tmp_path):
        pass
    assert serving_state(tmp_path) == ServingState(1)


def test_the_log_keeps_what_was_refused_and_survives_a_torn_line(repository: Path) -> None:
    """One JSON object a line; what a crash tore is left out and harms no neighbour."""
    record(repository, "publish", 1, done=True)
    with (repository / AUDIT_NAME).open("a") as file:
        file.write('{"action": "pro')
    with pytest.raises(ArtefactError, match="broken"), audited(repository, "promote", 3):
        raise ArtefactError("broken")
    entries = read_audit(repository)
    assert [(one["action"], one["version"], one["done"]) for one in entries] == [
        ("publish", 1, True),
        ("promote", 3, False),
    ]
    assert entries[1]["reason"] == "broken"
    assert {"time", "user"} <= set(entries[0])


def test_pruning_spares_the_served_and_the_previous_version(repository: Path) -> None:
    """Both the classifier's folder and the ensemble's go."""
    place(repository, 4)
    (repository / FRUIT_CLASSIFIER / "3").mkdir()
    with pytest.raises(UsageError, match="--keep"):
        prune(repository, keep=-1)
    assert prune(repository, keep=1) == [3]
    assert published_versions(repository) == [1, 2, 4]
    assert not (repository / FRUIT_CLASSIFIER / "3").exists()
    assert prune(repository, keep=0) == [4]
    assert prune(repository, keep=0) == []
    assert json.loads((repository / AUDIT_NAME).read_text().splitlines()[0])["removed"] == [3]


def test_check_names_the_file_that_was_altered(repository: Path) -> None:
    """Of any version, served or not."""
    assert [version.number for version in check_repository(repository, trusted_keys=None)] == [1, 2, 3]
    (repository / FRUIT_RESNET / "3" / "model.onnx").write_bytes(b"others")
    with pytest.raises(ArtefactError, match=r"3/model\.onnx: altered"):
        check_repository(repository, trusted_keys=None)
