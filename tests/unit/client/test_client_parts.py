import io
import json
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from tritonclient.utils import InferenceServerException

from export.corpus import encode, pattern
from fruitstand.errors import ClientError, UsageError
from fruitstand_client import (
    Client,
    DeadlineExceeded,
    ModelNotFound,
    Overloaded,
    Prediction,
    RankedLabel,
    RequestRejected,
    ServerUnreachable,
)
from fruitstand_client.errors import BY_STATUS, translate
from fruitstand_client.output import find_writer
from fruitstand_client.sources import find_images

GOOD = Prediction("a [1].jpg", (RankedLabel("Apple, red", 0.75), RankedLabel("Pear", 0.2)), "3")
BAD = Prediction("b.jpg", error="not an image")


def test_every_grpc_status_has_an_error_of_ours() -> None:
    """A status added by gRPC makes this test fail, not a user's program."""
    assert set(BY_STATUS) == {code.name for code in grpc.StatusCode} - {"OK"}


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        pytest.param("UNAVAILABLE", "Exceeds maximum queue size", Overloaded, id="queue_full"),
        pytest.param("UNAVAILABLE", "Request timeout expired", Overloaded, id="queue_timeout"),
        pytest.param("UNAVAILABLE", "failed to connect", ServerUnreachable, id="no_server"),
        pytest.param("UNAVAILABLE", "Request for unknown model: 'x'", ModelNotFound, id="no_model"),
        pytest.param("INVALID_ARGUMENT", "not an image", RequestRejected, id="rejected"),
        pytest.param("DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceeded, id="deadline"),
    ],
)
def test_a_foreign_error_is_translated(status: str, text: str, kind: type[ClientError]) -> None:
    """The same status means different things; the text tells them apart."""
    assert type(translate(InferenceServerException(text, status=f"StatusCode.{status}"), "h:1")) is kind


def test_jsonl_rows_have_the_contracts_fields() -> None:
    """One row an image, an error in its own row."""
    file = io.StringIO()
    assert find_writer("jsonl")([GOOD, BAD], file) == (1, 1)
    good, bad = (json.loads(line) for line in file.getvalue().splitlines())
    assert good == {
        "path": "a [1].jpg",
        "label": "Apple, red",
        "probability": 0.75,
        "top_k": [{"label": "Apple, red", "probability": 0.75}, {"label": "Pear", "probability": 0.2}],
        "model_version": "3",
        "error": None,
    }
    assert (bad["label"], bad["top_k"], bad["error"]) == (None, [], "not an image")


def test_csv_and_table_show_every_image() -> None:
    """Commas are quoted, brackets are no markup."""
    file = io.StringIO()
    find_writer("csv")([GOOD, BAD], file)
    assert file.getvalue().splitlines()[1] == (
        'a [1].jpg,"Apple, red",0.75,"Apple, red 0.750000; Pear 0.200000",3,'
    )
    file = io.StringIO()
    find_writer("table")([GOOD, BAD], file)
    assert "a [1].jpg" in file.getvalue()
    assert "error: not an image" in file.getvalue()


def test_files_folders_and_patterns_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the arguments, folders sorted and to the bottom, other files left alone."""
    for name in ("b/2.jpg", "b/1.PNG", "b/c/3.webp", "a.jpg", "notes.txt", "b/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    names = [str(path) for path in find_images(["a.jpg", "b", "*.txt"])]
    assert names == ["a.jpg", "b/1.PNG", "b/2.jpg", "b/c/3.webp", "notes.txt"]
    monkeypatch.setattr("sys.stdin", io.StringIO("a.jpg\n\nnot there.jpg\n"))
    assert [str(path) for path in find_images(["-"])] == ["a.jpg", "not there.jpg"]


@pytest.mark.parametrize("argument", ["nothing.jpg", "*.nothing", "empty"])
def test_an_argument_that_names_no_image_is_refused(
    argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typing error is told, not answered with nothing."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=argument.replace("*", r"\*")):
        find_images([argument])


def test_no_server_is_one_clear_error() -> None:
    """The address is named."""
    with (
        Client("127.0.0.1:1", deadline_s=5) as client,
        pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1"),
    ):
        list(client.classify([encode(pattern(100, 100))]))


@pytest.mark.parametrize(
    "values", [{"batch_size": 0}, {"batch_size": 65}, {"in_flight": 0}, {"deadline_s": 0}]
)
def test_client_settings_outside_what_is_allowed_are_refused(values: dict) -> None:
    """Before anything is sent."""
    with pytest.raises(ValueError, match="allowed"):
        Client("127.0.0.1:1", **values)


def test_the_client_needs_nothing_of_the_training_side() -> None:
    """Importing it loads no torch, no ONNX Runtime, no Pillow, no pyarrow."""
    script = (
        "import sys, fruitstand_client, fruitstand_client.classify;"
        "print(*{'torch', 'timm', 'onnx', 'onnxruntime', 'nvidia', 'PIL', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
