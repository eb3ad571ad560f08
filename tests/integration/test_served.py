import csv
import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from export.publish.repository import write_served
from fruitstand.contract import (
    FRUIT_CLASSIFIER,
    FRUIT_RESNET,
    IMAGE,
    IMAGE_DECODE,
    KNOWN,
    PROBABILITIES,
    SET_SIZE,
    Preprocessing,
)
from fruitstand.errors import ImageRejected
from fruitstand.images.conversion import as_supported
from fruitstand.images.reference_decode import decode_reference
from fruitstand.images.synthetic import encode, pattern, supported_images
from fruitstand.manifest import PreparedData
from fruitstand.model.session import open_session, run_batches
from fruitstand.repository.versions import ServingState, read_version
from fruitstand.runs import Run
from fruitstand_client import Client, ModelNotFound, Prediction
from serving.attest.kinds import ImageKind, image_kinds
from serving.triton.embedded import EmbeddedServer
from tests.command import fruitstand

NUM_BURSTS = 10


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


def burst(client: triton.InferenceServerClient, files: list[bytes]) -> list[np.ndarray]:
    """The answers to single images that are all sent at once."""
    results: dict[int, triton.InferResult | Exception] = {}
    for index, file in enumerate(files):
        client.async_infer(
            FRUIT_CLASSIFIER,
            [request(file)],
            lambda result, error, index=index: results.update({index: error or result}),
        )
    deadline = time.monotonic() + 60
    while len(results) < len(files):
        assert time.monotonic() < deadline, f"{len(results)} of {len(files)} answered"
        time.sleep(0.01)
    return [results[index].as_numpy(PROBABILITIES)[0] for index in range(len(files))]


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
    """Each of sixty-four requests at once gets its solo answer; in one of a few bursts both steps batch.

    On a busy machine a burst may come so slowly that the server takes one image at a time.
    """
    client = triton.InferenceServerClient(server.url)
    alone = [
        client.infer(FRUIT_CLASSIFIER, [request(file)]).as_numpy(PROBABILITIES)[0] for file in distinct_images
    ]
    without_a_batch = {IMAGE_DECODE, FRUIT_RESNET}
    for _ in range(NUM_BURSTS):
        before = {model: executions(client, model) for model in (IMAGE_DECODE, FRUIT_RESNET)}
        answers = burst(client, distinct_images)
        for model, (images, batches) in before.items():
            images_now, batches_now = executions(client, model)
            assert images_now - images == 64
            if batches_now - batches < 64:
                without_a_batch.discard(model)
        for got, expected in zip(answers, alone, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5)
            assert got.argmax() == expected.argmax()
        if not without_a_batch:
            break
    assert not without_a_batch, "no batch formed"
    client.close()


def test_served_answers_are_those_of_the_exported_model(
    server: EmbeddedServer, repository: Path, run: Run, test_images: list[Path]
) -> None:
    """DALI, Triton and the ensemble change nothing: the yardstick and the published file say the same."""
    from fruitstand.images.reference_decode import decode_reference
    from fruitstand.model.session import open_session, run_batches

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


def is_converted(kind: ImageKind) -> bool:
    """Whether the client sends a PNG in its place."""
    try:
        return as_supported(kind.content, Preprocessing()).converted_from is not None
    except ImageRejected:
        return False


def test_every_kind_of_image_gets_one_verdict_in_any_company(
    server: EmbeddedServer, distinct_images: list[bytes]
) -> None:
    """Alone, through the client in requests of eight, and among seven others; the answer is the same too."""
    kinds = [kind for kind in image_kinds() if len(kind.content) < 2**20 and not is_converted(kind)]
    company = [one for kind in kinds for one in (kind.content, *distinct_images[:7])]
    with Client(server.url, batch_size=1) as client:
        alone = list(client.classify(kind.content for kind in kinds))
    with Client(server.url, batch_size=8) as client:
        together = list(client.classify(kind.content for kind in kinds))
        among_others = list(client.classify(company))[::8]
    for kind, *answers in zip(kinds, alone, together, among_others, strict=True):
        for answer in answers:
            if kind.is_accepted:
                assert answer.error is None, f"{kind.name}: {answer.error}"
                probabilities = dict(answer.top_k)
                assert probabilities == pytest.approx(dict(answers[0].top_k), abs=1e-5), kind.name
            else:
                assert kind.verdict in str(answer.error), kind.name
                assert str(answer.error) == str(answers[0].error), kind.name


def test_one_request_of_eight_kinds_answers_each_as_alone(server: EmbeddedServer) -> None:
    """Padded with zeros to one length, as callers without our client send them."""
    client = triton.InferenceServerClient(server.url)
    kinds = [kind for kind in image_kinds() if kind.is_accepted]
    for start in range(0, len(kinds), 8):
        eight = kinds[start : start + 8]
        longest = max(len(kind.content) for kind in eight)
        images = np.stack([np.frombuffer(kind.content.ljust(longest, b"\0"), np.uint8) for kind in eight])
        tensor = triton.InferInput("IMAGE", list(images.shape), "UINT8")
        tensor.set_data_from_numpy(images)
        together = client.infer(FRUIT_CLASSIFIER, [tensor]).as_numpy(PROBABILITIES)
        for kind, got in zip(eight, together, strict=True):
            alone = client.infer(FRUIT_CLASSIFIER, [request(kind.content)]).as_numpy(PROBABILITIES)[0]
            np.testing.assert_allclose(got, alone, atol=1e-5, err_msg=kind.name)
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
    from fruitstand.contract import Preprocessing
    from fruitstand.images.reference_decode import decode_reference
    from fruitstand.model.session import open_session, run_batches

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


def test_the_served_known_is_the_files_own(
    server: EmbeddedServer, repository: Path, test_images: list[Path]
) -> None:
    """From the model step on the same pixels; an image of noise has no label for who asks to abstain."""
    version = read_version(repository, 1)
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    pixels = [decode_reference(path.read_bytes(), version.preprocessing) for path in test_images[:7]]
    batch = np.stack([*pixels, noise])
    tensor = triton.InferInput("PIXELS", list(batch.shape), "UINT8")
    tensor.set_data_from_numpy(batch)
    client = triton.InferenceServerClient(server.url)
    served = client.infer(FRUIT_RESNET, [tensor])
    client.close()
    session = open_session(version.directory / version.serve.cpu_model, version.serve.cpu_engine)
    for name in (KNOWN, SET_SIZE):
        np.testing.assert_allclose(served.as_numpy(name), run_batches(session, batch, name), atol=1e-3)
    with Client(server.url, abstain=True) as ours:
        *fruits, unknown = ours.classify([*test_images[:7], noise])
    assert [one.is_known for one in fruits].count(True) >= 6
    assert (unknown.label, unknown.is_known, unknown.error) == (None, False, None)
    assert all(
        one.label_set == tuple(rank.label for rank in one.top_k[: len(one.label_set)]) for one in fruits
    )


def test_a_version_that_was_not_calibrated_is_still_served(repository: Path, tmp_path: Path) -> None:
    """As one that was published before, or adopted: the client asks once for KNOWN, and then no more."""
    copy = shutil.copytree(repository, tmp_path / "copy")
    version = read_version(copy, 1)
    record = replace(version.record, serve=replace(version.serve, known=False))
    write_served(copy, ServingState(1), described_by=replace(version, record=record))
    with (
        EmbeddedServer(copy, log_path=tmp_path / "log") as running,
        Client(running.url, abstain=True) as ours,
    ):
        for _ in range(2):
            (one,) = ours.classify([encode(pattern(100, 100))])
            assert (one.known, one.label_set, one.is_known) == (None, None, True)
            assert one.label is not None


def test_predictions_name_what_they_are_for() -> None:
    """An answer without ranks has no label and no probability."""
    assert Prediction("x").label is None
    assert Prediction("x").probability is None
