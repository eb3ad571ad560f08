import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

from export.corpus import supported_images
from fruitstand.contract import FEATURES, FRUIT_CLASSIFIER, FRUIT_RESNET, IMAGE, IMAGE_DECODE, PROBABILITIES
from fruitstand.errors import ArtefactError, ServerError, UsageError
from fruitstand.image_kinds import image_kinds
from fruitstand.manifest import PreparedData
from fruitstand.runs import Run
from fruitstand.sample_images import encode, pattern
from fruitstand_client import Client, ModelNotFound, Prediction
from serving.embedded import EmbeddedServer
from tests.backends import on_host, served_config


def fruitstand(*arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    command = [sys.executable, "-m", "fruitstand", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, input=stdin)


@pytest.fixture(scope="module")
def distinct_images(test_images: list[Path]) -> list[bytes]:
    """Sixty-four files, no two alike and of many lengths."""
    files = [path.read_bytes() for path in test_images[:64]]
    assert len(set(files)) == 64
    assert len({len(file) for file in files}) > 32
    return files


def request(content: bytes) -> triton.InferInput:
    """One image as the ensemble's input."""
    encoded = np.frombuffer(content, np.uint8)[None]
    tensor = triton.InferInput(IMAGE, list(encoded.shape), "UINT8")
    tensor.set_data_from_numpy(encoded)
    return tensor


def executions(client: triton.InferenceServerClient, model: str) -> tuple[int, int]:
    """Images and batches a model has run so far."""
    stats = client.get_inference_statistics(model).model_stats[0]
    return stats.inference_count, stats.execution_count


def test_the_embedded_server_is_the_real_one(server: EmbeddedServer) -> None:
    """Triton 2.51.0 with the three models of the architecture."""
    client = triton.InferenceServerClient(server.url)
    assert client.get_server_metadata().version == "2.51.0"
    for model in (IMAGE_DECODE, FRUIT_RESNET, FRUIT_CLASSIFIER):
        assert client.is_model_ready(model)
    client.close()


def test_concurrent_single_images_form_batches_and_keep_their_answers(
    server: EmbeddedServer, distinct_images: list[bytes]
) -> None:
    """Sixty-four requests at once run as fewer batches on both steps, each with its own solo answer."""
    client = triton.InferenceServerClient(server.url)
    alone = [
        client.infer(FRUIT_CLASSIFIER, [request(file)]).as_numpy(PROBABILITIES)[0] for file in distinct_images
    ]
    before = {model: executions(client, model) for model in (IMAGE_DECODE, FRUIT_RESNET)}
    results: dict[int, triton.InferResult] = {}

    def keep(index: int):
        def callback(result: triton.InferResult, error: Exception | None) -> None:
            results[index] = result if error is None else error

        return callback

    for index, file in enumerate(distinct_images):
        client.async_infer(FRUIT_CLASSIFIER, [request(file)], keep(index))
    deadline = time.monotonic() + 60
    while len(results) < 64:
        assert time.monotonic() < deadline, f"{len(results)} of 64 answered"
        time.sleep(0.01)
    for model, (images, batches) in before.items():
        images_now, batches_now = executions(client, model)
        assert images_now - images == 64
        assert batches_now - batches < 64, f"{model}: no batch formed"
    for index, expected in enumerate(alone):
        got = results[index].as_numpy(PROBABILITIES)[0]
        np.testing.assert_allclose(got, expected, atol=1e-5)
        assert got.argmax() == expected.argmax()
    client.close()


def test_served_answers_are_those_of_the_exported_model(
    server: EmbeddedServer, repository: Path, run: Run, test_images: list[Path]
) -> None:
    """DALI, Triton and the ensemble change nothing: the yardstick and the published file say the same."""
    from export.checks import open_session, run_batches
    from fruitstand.reference_decode import decode_reference

    with Client(server.url, batch_size=16) as client:
        answers = [
            {rank.label: rank.probability for rank in one.top_k} for one in client.classify(test_images)
        ]
    served = np.array([[answer[label] for label in run.labels] for answer in answers])
    pixels = np.stack([decode_reference(path.read_bytes(), run.preprocessing) for path in test_images])
    version = repository / "fruit_resnet" / "1"
    engine = json.loads((version / "manifest.json").read_text())["reports"]["int8"]["engine"]
    session = open_session(version / "model.int8.onnx", engine)
    np.testing.assert_allclose(served, run_batches(session, pixels), atol=1e-4)


def test_every_kind_of_bad_image_fails_alone(server: EmbeddedServer, distinct_images: list[bytes]) -> None:
    """INVALID_ARGUMENT, in words, without path or stack trace, while the same batches answer the others."""
    client = triton.InferenceServerClient(server.url)
    good = distinct_images[:8]
    alone = [client.infer(FRUIT_CLASSIFIER, [request(one)]).as_numpy(PROBABILITIES)[0] for one in good]
    bad = [kind for kind in image_kinds() if not kind.is_accepted and kind.content]
    outcomes: dict[tuple[str, int], triton.InferResult | Exception] = {}

    def send(key: tuple[str, int], content: bytes) -> None:
        client.async_infer(
            FRUIT_CLASSIFIER,
            [request(content)],
            lambda result, error: outcomes.update({key: error or result}),
        )

    for number, kind in enumerate(bad):
        for position in range(4):
            send((kind.name, position), kind.content if position == number % 4 else good[position])
    deadline = time.monotonic() + 60
    while len(outcomes) < 4 * len(bad):
        assert time.monotonic() < deadline, f"{len(outcomes)} of {4 * len(bad)} answered"
        time.sleep(0.01)
    for number, kind in enumerate(bad):
        for position in range(4):
            outcome = outcomes[kind.name, position]
            if position != number % 4:
                np.testing.assert_allclose(outcome.as_numpy(PROBABILITIES)[0], alone[position], atol=1e-5)
                continue
            assert outcome.status() == "StatusCode.INVALID_ARGUMENT", kind.name
            reason = outcome.message()
            assert kind.verdict in reason
            assert not re.search(r"/|Traceback|fruitstand-serve|nvImageCodec|\n", reason), reason
    client.close()


def test_a_request_of_several_names_the_bad_one(server: EmbeddedServer, distinct_images: list[bytes]) -> None:
    """It fails as a whole; the client asks again for each of its images."""
    cut = distinct_images[1][:900]
    with Client(server.url, batch_size=8) as client:
        clean = list(client.classify(distinct_images[:7]))
        mixed = list(client.classify([*distinct_images[:3], cut, *distinct_images[3:7]]))
        bad = mixed.pop(3)
        assert mixed == clean
        assert bad.top_k == ()
        assert "truncated" in str(bad.error)


def test_neighbours_answers_are_bit_equal_where_the_engine_is_batch_invariant(
    server: EmbeddedServer, repository: Path, distinct_images: list[bytes]
) -> None:
    """First it is found out whether a row's answer depends on its batch; if not, it may not when served."""
    from export.checks import open_session, run_batches
    from fruitstand.contract import Preprocessing
    from fruitstand.reference_decode import decode_reference

    version = repository / "fruit_resnet" / "1"
    engine = json.loads((version / "manifest.json").read_text())["reports"]["int8"]["engine"]
    session = open_session(version / "model.int8.onnx", engine)
    pixels = np.stack([decode_reference(one, Preprocessing()) for one in distinct_images[:8]])
    single = np.concatenate([run_batches(session, one[None]) for one in pixels])
    if not np.array_equal(single, run_batches(session, pixels)):
        pytest.skip(f"{engine} rounds otherwise in another batch size on this processor")
    with Client(server.url, batch_size=1, in_flight=1) as client:
        alone = list(client.classify(distinct_images[:8]))
    with Client(server.url, batch_size=8) as client:
        assert list(client.classify(distinct_images[:8])) == alone


def test_every_supported_kind_of_image_is_answered(server: EmbeddedServer) -> None:
    """JPEG, PNG, WebP and BMP of all modes and sizes, in one request with others of other lengths."""
    with Client(server.url) as client:
        predictions = list(client.classify(supported_images().values()))
    assert [one.error for one in predictions if one.error is not None] == []
    assert all(
        sum(rank.probability for rank in one.top_k) == pytest.approx(1, abs=1e-3) for one in predictions
    )


def test_answers_keep_the_order_of_the_images(server: EmbeddedServer, prepared: PreparedData) -> None:
    """However many requests are under way at once."""
    paths = [prepared.directory / row.path for row in prepared.rows]
    with Client(server.url, batch_size=3, in_flight=8) as client:
        together = list(client.classify(paths))
    with Client(server.url, batch_size=64, in_flight=1) as client:
        one_by_one = list(client.classify(iter(paths)))
    assert [one.path for one in together] == list(map(str, paths))
    assert [one.label for one in together] == [one.label for one in one_by_one]
    assert all(one.model_version == "1" and len(one.top_k) == 4 for one in together)


def test_classify_reports_each_bad_file_in_its_row(
    server: EmbeddedServer, test_images: list[Path], tmp_path: Path
) -> None:
    """The others are answered, the exit status says that not all were."""
    good = tmp_path / "good [1].jpg"
    good.write_bytes(test_images[0].read_bytes())
    (tmp_path / "cut.jpg").write_bytes(test_images[0].read_bytes()[:900])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    out = tmp_path / "out.jsonl"
    done = fruitstand("classify", tmp_path, "--url", server.url, "--format", "jsonl", "--out", out)
    assert done.returncode == 1
    assert done.stdout == ""
    rows = {Path(row["path"]).name: row for row in map(json.loads, out.read_text().splitlines())}
    assert set(rows) == {"good [1].jpg", "cut.jpg", "empty.jpg"}
    assert rows["good [1].jpg"]["error"] is None
    assert "truncated" in rows["cut.jpg"]["error"]
    assert "empty" in rows["empty.jpg"]["error"]


def test_classify_writes_csv_and_reads_a_list_from_stdin(
    server: EmbeddedServer, test_images: list[Path]
) -> None:
    """A path that cannot be read has its row as well."""
    listed = "".join(f"{path}\n" for path in [*test_images[:2], "not there.jpg"])
    done = fruitstand("classify", "-", "--url", server.url, "--format", "csv", stdin=listed)
    assert done.returncode == 1
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["error"] for row in rows] == ["", "", "cannot be read: No such file or directory"]


def test_evaluate_gives_the_same_numbers_for_a_server_as_for_a_run(
    server: EmbeddedServer, run: Run, prepared: PreparedData
) -> None:
    """Within what int8 may change."""
    arguments = ("--data", prepared.directory, "--split", "test", "--json")
    offline = fruitstand("evaluate", "--run", run.directory, *arguments)
    served = fruitstand("evaluate", "--url", server.url, *arguments)
    assert (offline.returncode, served.returncode) == (0, 0), offline.stderr + served.stderr
    offline_metrics, served_metrics = json.loads(offline.stdout), json.loads(served.stdout)
    assert offline_metrics["num_images"] == served_metrics["num_images"] == 80
    assert abs(offline_metrics["top1"] - served_metrics["top1"]) <= 2 / 80


def test_serve_announces_itself_and_leaves_nothing_behind(repository: Path, tmp_path: Path) -> None:
    """SIGTERM ends it with status 0: no process, no shared-memory region, no temporary folder."""
    regions = set(Path("/dev/shm").iterdir())
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "fruitstand", "serve", "--repository", repository]
    command += ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["ready"] is True
        children = psutil.Process(process.pid).children(recursive=True)
        # tritonserver, and a stub for each of the two backends where those are Python's
        assert len(children) >= (1 if on_host() else 3)
        with Client(ready["grpc"]) as client:
            (prediction,) = client.classify([encode(pattern(100, 100))])
            assert prediction.error is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []
    assert set(Path("/dev/shm").iterdir()) <= regions
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_server_that_was_killed_leaves_no_orphans(repository: Path, tmp_path: Path) -> None:
    """Kill -9 of `fruitstand serve` ends tritonserver as well."""
    command = [sys.executable, "-m", "fruitstand", "serve", "--repository", repository]
    command += ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0", "--log", tmp_path / "log"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_a_taken_port_is_named(repository: Path) -> None:
    """With the flag that changes it; no server is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"port {port} is in use.*--http-port"):
            EmbeddedServer(repository, http_port=port)


def test_a_folder_that_is_no_repository_is_refused(repository: Path, tmp_path: Path) -> None:
    """As is one in which nothing is published."""
    import shutil

    with pytest.raises(UsageError, match="no model repository"):
        EmbeddedServer(tmp_path)
    copy = shutil.copytree(repository, tmp_path / "copy")
    shutil.rmtree(copy / "fruit_resnet" / "1")
    with pytest.raises(UsageError, match="no version of fruit_resnet"):
        EmbeddedServer(copy)


def test_a_model_that_cannot_be_loaded_is_named(repository: Path, tmp_path: Path) -> None:
    """The start looks at the files again, and gives the server's own reason where it has one."""
    import shutil

    copy = shutil.copytree(repository, tmp_path / "copy")
    model, pipeline = copy / "fruit_resnet" / "1" / "model.int8.onnx", copy / "image_decode" / "1" / "dali.py"
    server, content = EmbeddedServer(copy, log_path=tmp_path / "log"), model.read_bytes()
    model.write_bytes(b"torn")
    with pytest.raises(ArtefactError, match=r"model\.int8\.onnx: altered"):
        server.start()
    assert not server.is_alive()
    model.write_bytes(content)
    pipeline.write_text("no pipeline\n")
    with pytest.raises(ServerError, match=r"its log says: .*dali\.py"):
        server.start()
    assert not server.is_alive()


def test_a_server_without_the_model_is_named(server: EmbeddedServer) -> None:
    """The client says what is missing and where."""
    client = triton.InferenceServerClient(server.url)
    client.unload_model(FRUIT_CLASSIFIER)
    try:
        with Client(server.url) as ours, pytest.raises(ModelNotFound, match=server.url):
            list(ours.classify([encode(pattern(100, 100))]))
    finally:
        client.load_model(FRUIT_CLASSIFIER)
        client.close()


def test_predictions_name_what_they_are_for() -> None:
    """An answer without ranks has no label and no probability."""
    assert Prediction("x").label is None
    assert Prediction("x").probability is None


def test_what_a_configuration_leaves_out_is_completed(repository: Path, tmp_path: Path) -> None:
    """With auto-complete on, the file's own input and output are served."""
    import shutil

    copy = shutil.copytree(repository, tmp_path / "copy")
    config = served_config(copy, FRUIT_RESNET)
    kept = [line for line in config.read_text().splitlines() if not line.startswith(("input [", "output ["))]
    config.write_text("\n".join(kept))
    with EmbeddedServer(copy, log_path=tmp_path / "log", auto_complete=True) as running:
        client = triton.InferenceServerClient(running.url)
        completed = client.get_model_config(FRUIT_RESNET).config
        assert [(one.name, list(one.dims)) for one in completed.input] == [("PIXELS", [100, 100, 3])]
        assert [one.name for one in completed.output] == [PROBABILITIES, FEATURES]
        assert list(completed.output[0].dims) == [4]
        client.close()
