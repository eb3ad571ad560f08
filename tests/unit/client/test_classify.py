"""`fruitstand classify` against a real gRPC server that answers at once or slowly."""

import csv
import io
import json
import logging
import os
import re
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from fruitstand.errors import FruitstandError, UsageError
from fruitstand.images.synthetic import encode, pattern
from fruitstand_client import Tls
from fruitstand_client.command.classify import Output, classify_paths
from fruitstand_client.command.output import open_partial
from tests.model_server import ModelServer, model_server
from tests.nightly.chaos.authority import make_certificate, server_credentials

NUM_IMAGES = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty images; one has a name that CSV has to quote, one a name that is no UTF-8."""
    path = tmp_path_factory.mktemp("images")
    content = encode(pattern(50, 40))
    for number in range(NUM_IMAGES - 2):
        (path / f"{number:04}.jpg").write_bytes(content)
    (path / 'a "b",\nc.jpg').write_bytes(content)
    (path / os.fsdecode(b"b\xff.jpg")).write_bytes(content)
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    """Answers at once."""
    with model_server() as running:
        yield running


def command(*arguments: object) -> list[str]:
    """The verb as a process."""
    return [sys.executable, "-m", "fruitstand", "classify", *map(str, arguments)]


def classify(server: ModelServer, *arguments: object, settings: dict | None = None, **output: object) -> int:
    """The verb in this process; how many images failed."""
    return classify_paths(
        [str(one) for one in arguments],
        url=server.url,
        top_k=2,
        output=Output(**{"format": "jsonl", **output}),
        **(settings or {}),
    )


def names(out: Path) -> list[str]:
    """The images that have a row, in order."""
    if ".csv" in out.suffixes:
        with out.open(newline="") as file:
            return [row["path"] for row in csv.DictReader(file)]
    return [json.loads(line)["path"] for line in out.read_text().splitlines()]


@pytest.mark.parametrize("output_format", ["jsonl", "csv"])
def test_a_killed_run_is_resumed_with_one_row_an_image(
    output_format: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Kill -9; the file is in the end what a run without a break writes, and the rows it had were kept."""
    out, whole = tmp_path / f"out.{output_format}", tmp_path / f"whole.{output_format}"
    partial = tmp_path / f"out.{output_format}.partial"
    with model_server(lambda received, context: time.sleep(0.1)) as slow:
        arguments = [folder, "--url", slow.url, "--format", output_format, "--top-k", 2, "--out", out]
        arguments += ["--batch-size", 4]
        with subprocess.Popen(command(*arguments), stderr=subprocess.DEVNULL) as process:
            while len(slow.received) < 12:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        num_kept = len(names(partial))
        assert 4 * 4 <= num_kept <= 12 * 4
        assert not out.exists()
        with pytest.raises(UsageError, match=r"continue it with --resume"):
            classify(slow, folder, format=output_format, path=out)
        before = sum(len(one.images) for one in slow.received)
        assert classify(slow, folder, format=output_format, path=out, resume=True) == 0
        assert sum(len(one.images) for one in slow.received) - before == NUM_IMAGES - num_kept
        assert classify(slow, folder, format=output_format, path=whole) == 0
        before = len(slow.received)
        with caplog.at_level(logging.INFO):
            assert classify(slow, folder, format=output_format, path=out, resume=True) == 0
        assert "complete, nothing is left to do" in caplog.text
        assert len(slow.received) == before
    assert not partial.exists()
    assert out.read_bytes() == whole.read_bytes()
    assert len(names(out)) == len(set(names(out))) == NUM_IMAGES


@pytest.mark.parametrize("output_format", ["jsonl", "csv"])
def test_a_torn_row_is_cut_wherever_it_was_torn(
    output_format: str, folder: Path, server: ModelServer, tmp_path: Path
) -> None:
    """At every tenth byte of the first rows, and behind them what no row is."""
    out, whole = tmp_path / f"out.{output_format}", tmp_path / f"whole.{output_format}"
    partial = tmp_path / f"out.{output_format}.partial"
    classify(server, folder, format=output_format, path=whole)
    content = whole.read_bytes()
    tears = [content[:size] for size in range(0, len(content) // 4, len(content) // 20)]
    tears += [
        content[: content.index(b"\n", 900) + 1] + junk for junk in (b"\0\0\0\n", b'"x', b"{}\n", b"\n")
    ]
    for torn in tears:
        partial.write_bytes(torn)
        assert classify(server, folder, format=output_format, path=out, resume=True) == 0
        assert out.read_bytes() == content
        out.unlink()


def test_failed_rows_of_the_first_part_count(
    folder: Path, server: ModelServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the summary and in the result."""
    rows = [{"path": str(path), "error": None} for path in sorted(folder.iterdir())[:5]]
    rows[3]["error"] = "damaged"
    partial = tmp_path / "out.jsonl.partial"
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level(logging.INFO):
        assert classify(server, folder, path=tmp_path / "out.jsonl", resume=True) == 1
    assert "going on after 5 images" in caplog.text
    assert "1 in the interrupted run" in caplog.text
    assert len(names(tmp_path / "out.jsonl")) == NUM_IMAGES
    assert classify(server, folder, path=tmp_path / "out.jsonl", resume=True) == 1


def test_other_images_than_before_are_not_mixed_with_the_old_rows(
    folder: Path, server: ModelServer, tmp_path: Path
) -> None:
    """The row that differs is named and nothing is lost."""
    partial = tmp_path / "out.jsonl.partial"
    partial.write_text(json.dumps({"path": "another.jpg", "error": None}) + "\n")
    with pytest.raises(UsageError, match=r"row 1 is of another\.jpg"):
        classify(server, folder, path=tmp_path / "out.jsonl", resume=True)
    assert names(partial) == ["another.jpg"]


def test_a_complete_file_of_other_images_is_not_taken_for_this_run(
    folder: Path, server: ModelServer, tmp_path: Path
) -> None:
    """Whether an image came, went, or is another one: nothing is sent, and the old rows stay."""
    first, second, third = sorted(folder.glob("00*.jpg"))[:3]
    out = tmp_path / "out.jsonl"
    classify(server, first, second, path=out)
    content = out.read_bytes()
    server.received.clear()
    for images, words in (
        ([first, second, third], f"without a row for {third}"),
        ([first], f"row 2 is of {second}, and that input is nothing now"),
        ([first, third], f"row 2 is of {second}, and that input is {third} now"),
    ):
        with pytest.raises(UsageError, match=re.escape(words)):
            classify(server, *images, path=out, resume=True)
    assert server.received == []
    assert out.read_bytes() == content


def test_two_runs_never_write_one_file(tmp_path: Path) -> None:
    """The second one is told."""
    with (
        open_partial("jsonl", tmp_path / "out", resume=False),
        pytest.raises(UsageError, match="another run is writing to it"),
        open_partial("jsonl", tmp_path / "out", resume=True),
    ):
        pass


@pytest.mark.parametrize(
    "values",
    [
        {"format": "xml"},
        {"resume": True},
        {"resume": True, "path": Path("x"), "format": "parquet"},
        {"format": "parquet"},
    ],
)
def test_outputs_that_cannot_be_are_refused(values: dict) -> None:
    """With the flag's name."""
    with pytest.raises(UsageError, match="--"):
        Output(**values)


def test_failed_inputs_are_summed_up_and_change_the_exit_status(
    folder: Path, server: ModelServer, tmp_path: Path
) -> None:
    """On stderr, by reason, with an example; the rows go to stdout. An API key comes from the environment."""
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello")
    listed = [folder / "0001.jpg", *sorted(tmp_path.iterdir()), "nothing.jpg"]
    server.received.clear()
    done = subprocess.run(
        command("-", "--url", server.url, "--format", "jsonl"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        input="".join(f"{path}\n" for path in listed),
        env={**os.environ, "FRUITSTAND_API_KEY": "a secret"},
    )
    assert done.returncode == 1
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["error"] is None for row in rows] == [True, False, False, False]
    assert "4 images, " in done.stderr
    assert "3 without an answer" in done.stderr
    assert "1 cannot be read, such as nothing.jpg: cannot be read: No such file or directory" in done.stderr
    assert [one.metadata.get("x-api-key") for one in server.received] == ["a secret"]


def test_a_contact_sheet_shows_images_and_failures(folder: Path, server: ModelServer, tmp_path: Path) -> None:
    """As many tiles as images, drawn with what was sent."""
    bad, sheet = tmp_path / "bad.jpg", tmp_path / "sheet.png"
    bad.write_text("no image")
    images = (folder / "0001.jpg", bad, folder / "0002.jpg")
    assert classify(server, *images, path=tmp_path / "out.jsonl", sheet=sheet) == 1
    with Image.open(sheet) as picture:
        assert picture.size == (3 * 120, 170)
        tiles = [picture.crop((left, 0, left + 120, 120)) for left in (0, 120, 240)]
    assert tiles[0].tobytes() == tiles[2].tobytes()
    assert len(tiles[0].getcolors(120 * 120)) > 50 > len(tiles[1].getcolors(120 * 120))
    with pytest.raises(UsageError, match=r"sheet\.png"):
        classify(server, folder, path=tmp_path / "again.jsonl", sheet=tmp_path / "sheet.txt")


def test_a_contact_sheet_changes_no_answer(server: ModelServer, tmp_path: Path) -> None:
    """A PNG that is damaged in its middle is sent without a picture; a bad member of a tar has its reason."""
    header, data = encode(pattern(60, 40), "PNG").split(b"IDAT", 1)
    junk = b"\0\0\0\0\0\1\2\3"  # a chunk without a name, between the first and the last bytes of the data
    size = struct.pack(">I", 9)
    first = data[:9] + struct.pack(">I", zlib.crc32(b"IDAT" + data[:9]))
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(header[:-4] + size + b"IDAT" + first + junk + data[9:])
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("text.jpg")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"hello"))
    errors = []
    for name, sheet in (("plain", None), ("drawn", tmp_path / "sheet.png")):
        out = tmp_path / f"{name}.jsonl"
        assert classify(server, damaged, tmp_path / "a.tar", path=out, sheet=sheet) == 1
        errors.append([json.loads(line)["error"] for line in out.read_text().splitlines()])
    assert errors[0] == errors[1]
    assert errors[0][0] is None
    assert "empty" not in errors[0][1]


def test_what_cannot_work_is_one_line_that_says_what_to_do(folder: Path, tmp_path: Path) -> None:
    """An expired certificate, a CA's file that is not there, no such folder."""
    ca = make_certificate("ca")
    tls = Tls(ca=ca.write(tmp_path / "ca.pem"))
    expired = make_certificate("localhost", ca, days=(-3, -1))
    with model_server(credentials=server_credentials(expired), host="localhost") as server:
        cases = [
            ([folder], {"tls": tls}, "expired"),
            ([folder], {"tls": Tls(ca=tmp_path / "none.pem")}, "none.pem: cannot be read"),
            ([tmp_path / "none"], {}, "none: no such file or folder"),
            ([folder], {"batch_size": 65}, "batch_size: got 65, allowed 1 to 64"),
        ]
        for images, settings, words in cases:
            with pytest.raises(FruitstandError) as raised:
                classify(server, *images, path=tmp_path / "out.jsonl", settings=settings)
            assert words in str(raised.value)
            assert len(str(raised.value).splitlines()) == 1
            (tmp_path / "out.jsonl.partial").unlink(missing_ok=True)


def test_a_wrong_address_and_a_url_are_told_by_the_command(folder: Path) -> None:
    """One line on stderr, exit status 1 for the server, 2 for the arguments."""
    cases = [
        ([folder, "--url", "127.0.0.1:1"], 1, "check that it runs and that this is its gRPC address"),
        (["http://127.0.0.1:1/a.jpg"], 2, "download the images first"),
    ]
    for arguments, status, words in cases:
        done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == status
        (line,) = done.stderr.splitlines()
        assert line.startswith("fruitstand: error: ")
        assert words in line
