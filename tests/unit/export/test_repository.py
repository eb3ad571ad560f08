import fcntl
import os
import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.publish.promote import promote, rollback
from export.publish.render import LABELS_FILE, write_repository
from export.publish.repository import (
    LOCK_NAME,
    check_repository,
    configure,
    drifted_files,
    list_versions,
    locked,
    next_number,
    prune,
    stray_files,
    write_served,
)
from fruitstand.artefacts import read_json, write_json
from fruitstand.contract import FRUIT_CLASSIFIER, FRUIT_RESNET, IMAGE_DECODE, Preprocessing
from fruitstand.errors import ArtefactError, UsageError
from fruitstand.labels import read_labels
from fruitstand.repository.audit_log import AUDIT_NAME, audited, read_audit, record
from fruitstand.repository.tuning import TUNING_NAME, Tuning, read_tuning
from fruitstand.repository.versions import (
    LOADED_CONFIG,
    MANIFEST_NAME,
    ServingState,
    published_versions,
    read_version,
    serving_state,
)
from tests.repositories import place_version


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Versions 1 to 3; 2 is served, before it 1 was."""
    path = tmp_path / "repository"
    for number in (1, 2, 3):
        place_version(path, number)
    write_served(path, ServingState(2, 1))
    return path


def test_the_list_says_which_is_served_and_which_was(repository: Path) -> None:
    """Oldest first."""
    rows = [(row["version"], row["role"], row["model_name"]) for row in list_versions(repository)]
    assert rows == [(1, "previous", "resnet10t"), (2, "served", "resnet10t"), (3, "", "resnet10t")]
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
    write_served(repository, ServingState(2, 1, (3,)))
    config = repository / LOADED_CONFIG
    assert "versions: [ 2, 3 ]" in config.read_text()
    with locked(repository):
        pass
    assert not litter.exists()
    assert "versions: [ 2 ]" in config.read_text()
    assert serving_state(repository) == ServingState(2, 1)


@pytest.mark.parametrize("numbers", [pytest.param([1], id="one"), pytest.param([1, 2], id="several")])
def test_versions_copied_into_a_repository_are_served_when_asked_for(
    numbers: list[int], tmp_path: Path
) -> None:
    """The committed repository names version 1 and twelve painted classes: not those of what appears."""
    write_repository(tmp_path, Preprocessing(), [f"painted {number}" for number in range(12)])
    for number in numbers:
        place_version(tmp_path, number)
    with locked(tmp_path):
        pass
    assert serving_state(tmp_path) is None
    assert {row["role"] for row in list_versions(tmp_path)} == {""}
    with pytest.raises(UsageError, match="serves no version"):
        prune(tmp_path, keep=0)
    assert promote(tmp_path, 1, url=None) == ServingState(1)
    assert read_labels(tmp_path / LABELS_FILE) == ["Apple", "Pear"]


def test_a_first_version_is_rendered_before_it_is_there(tmp_path: Path) -> None:
    """Whoever loads it finds its own classes; until it is there, nothing is served."""
    write_repository(tmp_path, Preprocessing(), [f"painted {number}" for number in range(12)])
    place_version(tmp_path / "elsewhere", 1)
    new = read_version(tmp_path / "elsewhere", 1)
    write_served(tmp_path, ServingState(1), described_by=new)
    assert read_labels(tmp_path / LABELS_FILE) == ["Apple", "Pear"]
    assert serving_state(tmp_path) is None
    shutil.copytree(new.directory, tmp_path / FRUIT_RESNET / "1")
    assert serving_state(tmp_path) == ServingState(1)


def test_a_mistyped_repository_is_not_made(tmp_path: Path) -> None:
    """Only publishing makes one."""
    with pytest.raises(UsageError, match="no model repository"), locked(tmp_path / "mistyped"):
        pass
    assert not (tmp_path / "mistyped").exists()


def test_a_damaged_version_that_is_served_can_be_left(repository: Path) -> None:
    """Its manifest is not needed to serve another one."""
    (repository / FRUIT_RESNET / "2" / MANIFEST_NAME).write_text("{}")
    assert "altered" in list_versions(repository)[1]["damaged"]
    assert rollback(repository, url=None) == ServingState(1, 2)
    assert serving_state(repository) == ServingState(1, 2)
    assert prune(repository, keep=1) == []


def test_numbers_are_not_given_twice(repository: Path) -> None:
    """Whoever logged version 4 would otherwise mean two models."""
    assert next_number(repository) == 4
    record(repository, "publish", 4, done=True)
    record(repository, "publish", None, done=False, reason="a gate")
    assert next_number(repository) == 5
    # Published, and killed before that was logged.
    record(repository, "prune", None, done=True, removed=[5, 6])
    assert next_number(repository) == 7


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"version": 7}, "belongs to version 7", id="another version's"),
        pytest.param({"labels": ["Pear", "Apple"]}, "its labels are not those", id="labels"),
        pytest.param({"labels": None}, "TypeError", id="no labels"),
        pytest.param({"model_name": 3}, "names of model and run", id="model name"),
        pytest.param({"preprocessing": {"input_size": "x"}}, "altered, or of another", id="preprocessing"),
        pytest.param({"gates": [{"name": "size"}]}, "the gate 'size'", id="gate"),
        pytest.param({"files": {"../../x": {"sha256": "0" * 64, "size_bytes": 1}}}, "file name", id="path"),
        pytest.param({"files": {"a.onnx": {"sha256": "0", "size_bytes": 1}}}, "entry of a", id="sha256"),
        pytest.param({"serve": {}}, "serve names", id="serve"),
        pytest.param(
            {"serve": {"cpu_model": "x", "cpu_engine": "cpu", "gpu_model": "model.onnx"}},
            "none of its files",
            id="served file",
        ),
        pytest.param(
            {"serve": {"cpu_model": "model.onnx", "cpu_engine": '" }', "gpu_model": "model.onnx"}},
            "cpu_engine",
            id="engine",
        ),
    ],
)
def test_a_manifest_that_cannot_be_true_is_refused(repository: Path, change: dict, reason: str) -> None:
    """Its names become paths and lines of a configuration."""
    path = repository / FRUIT_RESNET / "3" / MANIFEST_NAME
    write_json(path, {**read_json(path), **change})
    with pytest.raises(ArtefactError, match=reason):
        read_version(repository, 3)


def test_what_was_rendered_and_then_edited_is_named(repository: Path) -> None:
    """Labels and configurations are not in the signed manifest: they follow from it."""
    assert drifted_files(repository) == []
    (repository / LABELS_FILE).write_text("Pear\nApple\n")
    (repository / IMAGE_DECODE / "1" / "dali.py").unlink()
    assert set(drifted_files(repository)) == {LABELS_FILE, Path(IMAGE_DECODE, "1", "dali.py")}


def test_what_was_not_rendered_is_named_where_triton_would_reload_for_it(
    repository: Path,
) -> None:
    """Versions of the classifier have manifests of their own; hidden files of the repository are its own."""
    assert stray_files(repository) == []
    stray = Path(IMAGE_DECODE, "1", "__pycache__", "dali.cpython-311.pyc")
    (repository / stray).parent.mkdir()
    (repository / stray).write_bytes(b"compiled")
    assert stray_files(repository) == [stray]


def test_what_was_done_is_done_without_its_line_in_the_log(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log is told of, not the outcome changed."""
    (repository / AUDIT_NAME).mkdir()
    assert promote(repository, 3, url=None) == ServingState(3, 2)
    assert "was not logged" in caplog.text


def test_an_interruption_is_logged_as_one(repository: Path) -> None:
    """Ctrl-C is a reason too."""
    with pytest.raises(KeyboardInterrupt), audited(repository, "promote", 3):
        raise KeyboardInterrupt
    assert read_audit(repository)[-1]["reason"] == "KeyboardInterrupt"


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
    place_version(repository, 4)
    (repository / FRUIT_CLASSIFIER / "3").mkdir()
    with pytest.raises(UsageError, match="--keep"):
        prune(repository, keep=-1)
    assert prune(repository, keep=1) == [3]
    assert published_versions(repository) == [1, 2, 4]
    assert not (repository / FRUIT_CLASSIFIER / "3").exists()
    assert prune(repository, keep=0) == [4]
    assert prune(repository, keep=0) == []
    assert read_audit(repository)[0]["removed"] == [3]


def test_check_names_the_file_that_was_altered(repository: Path) -> None:
    """Of any version, served or not."""
    assert [version.number for version in check_repository(repository, trusted_keys=None)] == [1, 2, 3]
    (repository / FRUIT_RESNET / "3" / "model.onnx").write_bytes(b"others")
    with pytest.raises(ArtefactError, match=r"3/model\.onnx: altered"):
        check_repository(repository, trusted_keys=None)


def test_configured_settings_reach_both_steps_and_survive_a_promotion(repository: Path) -> None:
    """They are in the files Triton reads, beside whatever version is served."""
    settings = Tuning(decode_threads=3, infer_preferred_batch=16, infer_threads=2, max_queue_size=99)
    configure(repository, settings)
    write_served(repository, ServingState(3, 2))
    assert read_tuning(repository) == settings
    assert drifted_files(repository) == []
    decode, infer = (
        text_format.Parse((repository / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        for model in (IMAGE_DECODE, FRUIT_RESNET)
    )
    assert decode.parameters["num_threads"].string_value == "3"
    assert decode.dynamic_batching.default_queue_policy.max_queue_size == 99
    assert list(infer.dynamic_batching.preferred_batch_size) == [16]
    assert infer.parameters["intra_op_thread_count"].string_value == "2"
    assert read_audit(repository)[-1]["action"] == "configure"


def test_only_a_repository_that_serves_can_be_configured(tmp_path: Path) -> None:
    """There is nothing to write the settings for."""
    write_repository(tmp_path, Preprocessing(), ["a", "b"])
    with pytest.raises(UsageError, match="nothing is published there"):
        configure(tmp_path, Tuning())
    assert not (tmp_path / TUNING_NAME).exists()
