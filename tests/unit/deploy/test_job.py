import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fruitstand.errors import ArtefactError, UsageError
from scoring.job import open_job
from scoring.model import Answer, PinnedServer
from scoring.partitions import Image

RECORD: dict[str, Any] = {
    "inputs": {"num_images": 3, "sha256": "a" * 64},
    "model": {"version": "7", "manifest_sha256": "b" * 64},
    "settings": {"partition_size": 2, "top_k": 2},
}
APPLE = Answer(["Apple", "Pear"], [0.75, 0.25])


def image(index: int, path: str = "x.png") -> Image:
    """An input that was read."""
    return Image(index, path, b"")


def test_rows_say_what_which_and_by_which_model(tmp_path: Path) -> None:
    """Answers in one table, reasons in the other."""
    with open_job(tmp_path / "out", RECORD) as job:
        unnameable = os.fsdecode(b"caf\xe9.png")
        job.write(4, [(image(8, unnameable), APPLE), (image(9, "b.png"), "damaged")])
        assert job.count_rows() == {"predictions": 1, "errors": 1}
        (answered,) = pq.read_table(job.directory / "predictions").to_pylist()
        (failed,) = pq.read_table(job.directory / "errors").to_pylist()
    assert answered == {
        "index": 8,
        "path": "caf\\udce9.png",
        "label": "Apple",
        "probability": 0.75,
        "top_k": [{"label": "Apple", "probability": 0.75}, {"label": "Pear", "probability": 0.25}],
        "model_version": "7",
        "manifest_sha256": "b" * 64,
    }
    assert failed == {
        "index": 9,
        "path": "b.png",
        "error": "damaged",
        "model_version": "7",
        "manifest_sha256": "b" * 64,
    }


def test_a_partition_is_finished_once_its_predictions_are_there(tmp_path: Path) -> None:
    """Cut off before, it is written again, and errors of the first try do not stay behind."""
    with open_job(tmp_path, RECORD) as job:
        job.write(0, [(image(0), APPLE), (image(1), "cannot be read")])
        job.file("predictions", 0).unlink()  # as a kill between the two files leaves it
        (tmp_path / "predictions" / ".tmp-1-abcd-part-000000.parquet").touch()
    with open_job(tmp_path, RECORD) as job:
        assert not job.is_finished(0)
        assert not list((tmp_path / "predictions").iterdir())
        job.write(0, [(image(0), APPLE), (image(1), APPLE)])
        assert job.is_finished(0)
        assert job.count_rows() == {"predictions": 2, "errors": 0}


def test_a_partition_in_which_nothing_is_answered_is_finished_too(tmp_path: Path) -> None:
    """Its predictions are an empty table with the same columns."""
    with open_job(tmp_path, RECORD) as job:
        job.write(0, [(image(0), "damaged")])
        job.write(1, [(image(1), APPLE)])
        assert job.is_finished(0)
        assert job.count_rows() == {"predictions": 1, "errors": 1}
        schemas = [pq.read_schema(job.file("predictions", number)) for number in (0, 1)]
    assert schemas[0] == schemas[1]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        pytest.param("inputs", {"num_images": 4, "sha256": "c" * 64}, "other inputs", id="inputs"),
        pytest.param(
            "model", {"version": "8", "manifest_sha256": "b" * 64}, "version 7.*version 8", id="model"
        ),
        pytest.param("settings", {"partition_size": 3, "top_k": 2}, "other settings", id="settings"),
    ],
)
def test_a_rerun_with_something_else_is_refused(key: str, value: dict, says: str, tmp_path: Path) -> None:
    """Two jobs' rows never lie in one folder."""
    with open_job(tmp_path, RECORD):
        pass
    with pytest.raises(UsageError, match=says), open_job(tmp_path, {**RECORD, key: value}):
        pass


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    """The first one holds the folder until it ends, whatever ends it."""
    with (
        open_job(tmp_path, RECORD),
        pytest.raises(ArtefactError, match="another run"),
        open_job(tmp_path, RECORD),
    ):
        pass
    with open_job(tmp_path, RECORD):
        pass


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    """Nobody's files end up among answers."""
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"thesis\.txt.*no scoring job"), open_job(tmp_path, RECORD):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not a folder"), open_job(tmp_path / "file", RECORD):
        pass


def test_a_damaged_partition_is_named(tmp_path: Path) -> None:
    """With what to do about it."""
    with open_job(tmp_path, RECORD) as job:
        job.write(0, [(image(0), APPLE)])
        job.file("predictions", 0).write_bytes(b"torn")
        with pytest.raises(ArtefactError, match=r"part-000000\.parquet: damaged.*remove it"):
            job.count_rows()


@pytest.mark.parametrize(
    ("other", "says"),
    [
        pytest.param(PinnedServer("b:8001", "1", "c" * 64), "url a:8001,.* url b:8001", id="url"),
        pytest.param(
            PinnedServer("a:8001", "1", "d" * 64), "labels_sha256 c+,.*labels_sha256 d", id="classes"
        ),
        pytest.param(
            PinnedServer("a:8001", "1", "c" * 64, "birds_classifier"),
            "model birds_classifier",
            id="classifier",
        ),
        pytest.param(PinnedServer("a:8001", "2", "c" * 64), "version 1,.*version 2,", id="version"),
    ],
)
def test_a_job_on_a_server_goes_on_with_the_same_only(other: PinnedServer, says: str, tmp_path: Path) -> None:
    """Version 1 of another server, or of another repository behind the same address, is another model."""
    begun = {**RECORD, "model": PinnedServer("a:8001", "1", "c" * 64).identity()}
    for _ in range(2):
        with open_job(tmp_path / "out", begun):
            pass
    with (
        pytest.raises(UsageError, match=f"other model .*{says}"),
        open_job(tmp_path / "out", {**RECORD, "model": other.identity()}),
    ):
        pass
