"""Two repositories in one server: each is answered, promoted and asked over HTTP by its own name."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from export.publish.promote import promote
from export.publish.repository import list_versions, prune
from fruitstand.contract import FRUIT_CLASSIFIER
from fruitstand.network.connections import fetch_page, metric_total
from fruitstand.repository.tolerances import MAX_INT8_DISTANCE
from fruitstand.repository.versions import Version, read_version
from fruitstand_client import Client
from fruitstand_client.errors import ModelNotFound
from loadtests.diagnose import diagnose
from serving.attest.attest import attest
from serving.attest.promise import reference_answers
from serving.page.web import WebServer
from serving.triton.embedded import EmbeddedServer
from tests import prebuilt
from tests.callers import Caller, padded_batch
from tests.command import fruitstand
from tests.http_calls import ask

BIRDS = "birds_classifier"
NUM_IMAGES = 8
NUM_CALLERS = 2
"""Of each classifier."""


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository named birds with versions 1, served, and 2."""
    path = tmp_path_factory.mktemp("birds") / "model_repository"
    return shutil.copytree(prebuilt.birds() / "model_repository", path)


@pytest.fixture(scope="module")
def both(repository: Path, birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """One server with the default repository and that one."""
    with EmbeddedServer(repository, birds, log_path=tmp_path_factory.mktemp("both") / "triton.log") as server:
        yield server


def own_answers(version: Version, images: list[Path]) -> np.ndarray:
    """What a version's own file answers, (N, num_classes)."""
    encoded = [path.read_bytes() for path in images]
    return reference_answers(version, version.serve.cpu_model, encoded).probabilities


def served_answers(server: EmbeddedServer, model: str, version: Version, images: list[Path]) -> np.ndarray:
    """What the server answers in that model's name, (N, num_classes)."""
    with Client(server.url, model=model) as client:
        answers = client.classify(images, top_k=len(version.labels))
    assert {one.model_version for one in answers} == {str(version.number)}
    ranked = [{rank.label: rank.probability for rank in one.top_k} for one in answers]
    return np.array([[row[label] for label in version.labels] for row in ranked])


def test_each_classifier_answers_as_its_own_file(
    both: EmbeddedServer, repository: Path, birds: Path, test_images: list[Path]
) -> None:
    """Two models of the same classes in one server; neither's answers are the other's."""
    images = test_images[:NUM_IMAGES]
    versions = {FRUIT_CLASSIFIER: read_version(repository, 1), BIRDS: read_version(birds, 1)}
    own = {model: own_answers(version, images) for model, version in versions.items()}
    for (model, version), other in zip(versions.items(), reversed(versions), strict=True):
        served = served_answers(both, model, version, images)
        distance, from_other = (np.abs(served - own[name]).sum(axis=1) / 2 for name in (model, other))
        assert distance.max() <= MAX_INT8_DISTANCE
        assert (distance < from_other / 3).all(), f"{model} is answered by {other}"
    with (
        Client(both.url, model="fish_classifier") as client,
        pytest.raises(ModelNotFound, match="of that name"),
    ):
        client.classify(images)


def test_http_asks_the_classifier_that_the_request_names(
    both: EmbeddedServer, test_images: list[Path]
) -> None:
    """The first repository's without a name; the steps behind a classifier stay closed."""
    image = test_images[0].read_bytes()
    with WebServer(0) as web, Client(both.url) as fruit, Client(both.url, model=BIRDS) as birds:
        web.start(both.url)
        for query, client in (("", fruit), (f"?model={FRUIT_CLASSIFIER}", fruit), (f"?model={BIRDS}", birds)):
            expected = client.classify([image])[0].to_dict()
            answer = ask(f"{web.url}/classify{query}", image).json
            assert answer["label"] == expected["label"]
            assert answer["probability"] == pytest.approx(expected["probability"], abs=1e-3)
        assert ask(f"{web.url}/v2/models/{BIRDS}").json["name"] == BIRDS
        assert ask(f"{web.url}/v2/models/{BIRDS}/ready").status == 200
        assert ask(f"{web.url}/v2/models/birds_model").status == 404
        assert ask(f"{web.url}/v2/models/fish_classifier").status == 404
        unknown = ask(f"{web.url}/classify?model=fish_classifier", image)
        assert (unknown.status, unknown.error) == (404, "the server has no such classifier or version")
        step = ask(f"{web.url}/classify?model=birds_model", image)
        assert (step.status, step.error.partition(":")[0]) == (400, "model")


def test_score_asks_the_classifier_that_it_is_told(
    both: EmbeddedServer, repository: Path, test_images: list[Path], tmp_path: Path
) -> None:
    """A job that has begun with one goes on with no other, and a repository has to have the name."""
    source = tmp_path / "images"
    source.mkdir()
    for path in test_images[:NUM_IMAGES]:
        shutil.copy(path, source)
    asked = ("score", source, "--out", tmp_path / "out", "--url", both.url, "--workers", 0)
    done = fruitstand(*asked, "--name", "birds")
    assert done.returncode == 0, done.stderr
    (part,) = (tmp_path / "out" / "predictions").glob("*.parquet")
    scored = {row["path"]: row for row in pq.read_table(part).to_pylist()}
    with Client(both.url, model=BIRDS) as client:
        for name, row in scored.items():
            (online,) = client.classify([source / name])
            assert row["label"] == online.label
            assert row["probability"] == pytest.approx(online.probability, abs=1e-3)
    other = fruitstand(*asked)
    assert other.returncode == 2
    assert "model birds_classifier" in other.stderr
    offline = ("score", source, "--out", tmp_path / "other", "--repository", repository)
    assert "serves fruit_classifier, not birds_classifier" in fruitstand(*offline, "--name", "birds").stderr


def test_one_is_promoted_under_load_of_both_and_no_request_fails(
    both: EmbeddedServer, birds: Path, test_images: list[Path]
) -> None:
    """Birds goes to its version 2 and back; what answers as fruit is version 1 throughout."""
    batch = padded_batch(test_images[:NUM_IMAGES])
    callers = {
        model: [Caller(both, batch, model) for _ in range(NUM_CALLERS)] for model in (FRUIT_CLASSIFIER, BIRDS)
    }
    running = [caller for each in callers.values() for caller in each]
    with ExitStack() as stack:
        for caller in running:
            stack.enter_context(caller)
        for number in (2, 1):
            assert promote(birds, number, url=both.url).version == number
            for caller in running:
                caller.wait_for_an_answer()
        found = diagnose(both.url, model_name=BIRDS, seconds=2)
    assert [failure for caller in running for failure in caller.failures] == []
    seen = {
        model: {answer.version for caller in each for answer in caller.answers}
        for model, each in callers.items()
    }
    assert seen == {FRUIT_CLASSIFIER: {1}, BIRDS: {1, 2}}
    assert {step["name"] for step in found["steps"]} == {"birds_decode", "birds_model"}
    page = str(fetch_page(both.metrics_url, timeout_s=10), "utf-8")
    assert all(metric_total(page, "nv_inference_request_success", model=model) > 0 for model in callers)
    assert [row["role"] for row in list_versions(birds)] == ["served", "previous"]
    assert prune(birds, keep=0) == []


@pytest.mark.nightly
def test_a_named_classifier_is_attested_by_its_repository(both: EmbeddedServer, birds: Path) -> None:
    """Every check asks birds; the default's repository beside it is not looked at."""
    report = attest(both.url, repository=birds, quick=True)
    assert report.passed(strict=False), "\n".join(report.lines())


def test_two_repositories_of_one_name_are_refused(repository: Path, tmp_path: Path) -> None:
    """With one line that says what to do, before anything is started."""
    copy = shutil.copytree(repository, tmp_path / "copy")
    command = [sys.executable, "-m", "fruitstand", "serve", "--repository", repository, "--repository", copy]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "serves fruit_classifier" in done.stderr.splitlines()[-1]
