"""Explanations by a real server: over gRPC, over HTTP and on the command line."""

import base64
import io
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image

from export.publish.promote import promote
from export.publish.publish import publish
from export.publish.repository import check_repository, drifted_files, prune
from fruitstand.contract import EXPLAINER_MODELS, FEATURE_MAP, FRUIT_RESNET, PIXELS, PROBABILITIES
from fruitstand.images.reference_decode import decode_reference
from fruitstand.manifest import PreparedData
from fruitstand.model.session import open_session, run_batches
from fruitstand.repository.version_record import EXPLAINER_MODEL, FP32_MODEL
from fruitstand.repository.versions import read_version
from fruitstand_client import Client, ImageRejected
from fruitstand_client.errors import ModelNotFound
from fruitstand_client.explanation import Crop
from serving.page.web import WebServer
from serving.triton.backend_directory import BACKENDS_VARIABLE, STUB
from serving.triton.embedded import EmbeddedServer
from tests.command import fruitstand
from tests.http_calls import OPENAPI, ask


def test_an_explanation_is_what_the_versions_files_give(
    explaining_server: EmbeddedServer, test_images: list[Path]
) -> None:
    """The same classes as the classifier's, and the maps of the files offline."""
    version = read_version(explaining_server.repositories[0], 1)
    pixels = decode_reference(test_images[0].read_bytes(), version.preprocessing)[None]
    feature_map = run_batches(open_session(version.directory / FP32_MODEL), pixels, FEATURE_MAP)
    explainer = open_session(version.directory / EXPLAINER_MODEL)
    probabilities, activation = explainer.run(None, {FEATURE_MAP: feature_map, PIXELS: pixels})[:2]
    with Client(explaining_server.url) as client:
        found = client.explain(test_images[0])
        (answer,) = client.classify([test_images[0]])
    assert [one.label for one in found.ranked] == [one.label for one in answer.top_k]
    np.testing.assert_allclose(
        [one.probability for one in found.ranked], np.sort(probabilities[0])[::-1], atol=1e-3
    )
    np.testing.assert_allclose(found.activations, activation[0], atol=0.02)
    assert found.model_version == "1"
    assert found.crop == Crop(aspect=1, share=1, is_squashed=False)


def test_a_training_image_is_recognised_and_a_new_one_is_not(
    explaining_server: EmbeddedServer, prepared: PreparedData, large_jpegs: dict[str, bytes]
) -> None:
    """The version keeps all training images of so small a data set."""
    row = prepared.split("train")[5]
    with Client(explaining_server.url) as client:
        known = client.explain(prepared.directory / row.path).neighbours
        new = client.explain(next(iter(large_jpegs.values()))).neighbours
    assert known[0].label == row.label
    assert known[0].is_nearly_identical
    assert known[0].similarity == pytest.approx(1, abs=0.01)
    assert len(known) == 5
    assert not any(one.is_nearly_identical for one in new)
    for one in known:
        with Image.open(io.BytesIO(one.picture)) as picture:
            assert picture.format == "WEBP"
            picture.load()


def test_http_gives_the_same_in_the_documented_form(
    explaining_server: EmbeddedServer, server: EmbeddedServer, test_images: list[Path]
) -> None:
    """404 where no explainer is served; a bad image is refused as by /classify."""
    body = test_images[0].read_bytes()
    with WebServer(0) as web, Client(explaining_server.url) as client:
        web.start(explaining_server.url)
        answer = ask(f"{web.url}/explain", body)
        assert answer.status == 200, answer.body
        schema = {"$ref": "#/components/schemas/Explanation", "components": OPENAPI["components"]}
        jsonschema.validate(answer.json, schema)
        expected = client.explain(body)
        assert answer.json["label"] == expected.ranked[0].label
        shown = answer.json["neighbours"][0]["picture"].partition("base64,")[2]
        assert base64.b64decode(shown) == expected.neighbours[0].picture
        assert ask(f"{web.url}/explain", b"no image").status == 400
    with WebServer(0) as web:
        web.start(server.url)
        refused = ask(f"{web.url}/explain", body)
    assert (refused.status, "--explain" in refused.error) == (404, True)


def test_classify_writes_a_picture_of_each_explanation(
    explaining_server: EmbeddedServer, server: EmbeddedServer, test_images: list[Path], tmp_path: Path
) -> None:
    """Bad images keep their row and get no picture; a server without an explainer is named."""
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    out = tmp_path / "why"
    done = fruitstand(
        "classify", test_images[0], bad, test_images[1], "--url", explaining_server.url, "--explain", out
    )
    assert done.returncode == 1, done.stderr
    assert len(done.stdout.splitlines()) == 4
    written = sorted(path.name for path in out.iterdir())
    assert written == [f"00000-{test_images[0].stem}.png", f"00002-{test_images[1].stem}.png"]
    with Image.open(out / written[0]) as picture:
        assert np.asarray(picture).std() > 20
    refused = fruitstand("classify", test_images[0], "--url", server.url, "--explain", out)
    assert refused.returncode == 2
    assert "export --explain" in refused.stderr


def test_a_bad_image_is_rejected_and_a_missing_explainer_named(
    explaining_server: EmbeddedServer, server: EmbeddedServer, test_images: list[Path]
) -> None:
    """By the errors that every other call raises."""
    with Client(explaining_server.url) as client, pytest.raises(ImageRejected):
        client.explain(b"no image")
    with Client(server.url) as client, pytest.raises(ModelNotFound):
        client.explain(test_images[0])


def test_the_python_stubs_explain_as_the_own_backend_does(
    explaining_server: EmbeddedServer,
    test_images: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Bit for bit the same neighbours; also from a copy that has folders where links were."""
    copy = shutil.copytree(explaining_server.repositories[0], tmp_path / "copy")
    monkeypatch.setenv(BACKENDS_VARIABLE, STUB)
    with Client(explaining_server.url) as client:
        expected = client.explain(test_images[2])
    with EmbeddedServer(copy, log_path=tmp_path / "log") as stub, Client(stub.url) as client:
        found = client.explain(test_images[2])
    assert found.neighbours == expected.neighbours
    np.testing.assert_allclose(found.activations, expected.activations, atol=1e-4)


def test_a_promotion_takes_the_explainer_along(
    explaining_server: EmbeddedServer, test_images: list[Path]
) -> None:
    """Links and configurations follow the served version; every file is in the repository once."""
    repository = explaining_server.repositories[0]
    number = publish(repository, repository.parent / "tiny" / "export", max_slowdown=100)["version"]
    promote(repository, number, url=explaining_server.url)
    with Client(explaining_server.url) as client:
        assert client.explain(test_images[0]).model_version == str(number)
        assert client.classify([test_images[0]])[0].model_version == str(number)
    for model in EXPLAINER_MODELS:
        (link,) = (repository / model).glob("[0-9]*")
        assert link.readlink() == Path("..", FRUIT_RESNET, str(number))
    assert drifted_files(repository) == []
    assert [one.number for one in check_repository(repository, trusted_keys=None)] == [1, number]
    session = open_session(repository / FRUIT_RESNET / "1" / FP32_MODEL)
    assert {one.name for one in session.get_outputs()} >= {PROBABILITIES, FEATURE_MAP}
    assert prune(repository, keep=0) == []
