"""Versions change under load, and only what was proved is ever served."""

import contextlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from export.onnx.quantize import CHOICES
from export.publish.export import export
from export.publish.live_server import LiveServer
from export.publish.promote import promote, rollback
from export.publish.publish import publish
from export.publish.repository import write_served
from fruitstand.artefacts import read_json, sha256_file, write_json
from fruitstand.contract import FRUIT_RESNET, Preprocessing
from fruitstand.errors import ArtefactError, FruitstandError, GateFailed, ServerError
from fruitstand.manifest import ManifestRow, PreparedData
from fruitstand.repository.audit_log import read_audit
from fruitstand.repository.versions import (
    MANIFEST_NAME,
    ServingState,
    Version,
    loaded_versions,
    published_versions,
    serving_state,
)
from fruitstand.runs import read_run
from serving.triton.embedded import EmbeddedServer
from tests.callers import Caller, ask_once, padded_batch
from tests.crash import Crasher, assert_whole
from tests.nightly.chaos import bad_candidates as candidates
from tests.nightly.chaos.wholeness import litter

LOADS = f"TRITONBACKEND_ModelInstanceInitialize: {FRUIT_RESNET}_0"
NUM_SWAPS = int(os.environ.get("FRUITSTAND_SWAPS", "6"))
NUM_CLIENTS = 8
NUM_IMAGES = 8
NUM_KILLS = int(os.environ.get("FRUITSTAND_KILLS", "1"))
ANY_SLOWDOWN = 100.0
"""On a busy machine a gate on time would decide these tests."""
MAX_DIFFERENCE = 1e-3
"""Between an image's answers in batches of different sizes, on probabilities; versions differ by more."""


@pytest.fixture(scope="module")
def versions(two_versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with versions 1, served, and 2, which these tests change."""
    return shutil.copytree(two_versions, tmp_path_factory.mktemp("versions") / "model_repository")


@pytest.fixture(scope="module")
def live_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where that server's log goes."""
    return tmp_path_factory.mktemp("live") / "triton.log"


@pytest.fixture(scope="module")
def live(versions: Path, live_log: Path) -> Iterator[EmbeddedServer]:
    """A server on that repository."""
    with EmbeddedServer(versions, log_path=live_log) as server:
        yield server


@pytest.fixture(scope="module")
def batch(test_images: list[Path]) -> np.ndarray:
    """Some images as one request."""
    return padded_batch(test_images[:NUM_IMAGES])


def test_a_later_version_is_served_when_it_is_promoted_not_before(
    versions: Path, live: EmbeddedServer, batch: np.ndarray
) -> None:
    """Publishing changes nothing for callers; the golden answers of the new version are there."""
    assert published_versions(versions) == [1, 2]
    assert ask_once(live, batch)[0] == 1
    state = serving_state(versions)
    assert state is not None
    assert (state.version, state.previous) == (1, None)


def test_a_promotion_loads_the_new_version_only(
    versions: Path, live: EmbeddedServer, live_log: Path, batch: np.ndarray
) -> None:
    """The one that answers is not loaded again, and neither is the one before it: going back is at once."""
    loads = []
    for number in (2, 1, 2, 1):
        before = live_log.read_text().count(LOADS)
        promote(versions, number, url=live.url)
        assert ask_once(live, batch)[0] == number
        assert loaded_versions(versions) == [number], "a server that starts loads what is served"
        loads.append(live_log.read_text().count(LOADS) - before)
    assert loads == [1, 0, 0, 0]


@pytest.mark.scaled
def test_swaps_under_load_lose_no_request_and_mix_no_versions(
    versions: Path, live: EmbeddedServer, batch: np.ndarray
) -> None:
    """Swaps while eight clients send without pause: every answer is wholly of the version it names."""
    expected = {1: ask_once(live, batch)[1]}
    promote(versions, 2, url=live.url)
    expected[2] = ask_once(live, batch)[1]
    assert np.abs(expected[1] - expected[2]).max(axis=1).min() > 10 * MAX_DIFFERENCE
    callers = [Caller(live, batch) for _ in range(NUM_CLIENTS)]
    with contextlib.ExitStack() as stack:
        for caller in callers:
            stack.enter_context(caller)
        for swap in range(NUM_SWAPS):
            state = promote(versions, 1 + swap % 2, url=live.url)
            assert state.version == 1 + swap % 2
    answers = [answer for caller in callers for answer in caller.answers]
    assert [failure for caller in callers for failure in caller.failures] == []
    assert max(np.abs(one.probabilities - expected[one.version]).max() for one in answers) <= MAX_DIFFERENCE
    assert min(sum(one.version == number for one in answers) for number in (1, 2)) > NUM_SWAPS
    rollback(versions, url=live.url)
    assert ask_once(live, batch)[0] == 1


def publish_changed(change: Callable[[Path], None]) -> Callable[[Path, Path, str], None]:
    """Try to publish a candidate after a change."""

    def attempt(versions: Path, candidate: Path, url: str) -> None:
        change(candidate)
        publish(versions, candidate)

    return attempt


def export_inaccurate(versions: Path, candidate: Path, url: str) -> None:
    """Export again, int8 calibrated on black images: measured, and published all the same."""
    run = read_run(candidate.parent)

    def black(data: PreparedData, rows: list[ManifestRow], preprocessing: Preprocessing) -> np.ndarray:
        return np.zeros((len(rows), *preprocessing.input_size, 3), np.uint8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.publish.candidate.decode_rows", black)
        patch.setattr("export.onnx.int8.CHOICES", CHOICES[:1])
        with pytest.raises(GateFailed, match=r"top1_agreement: got 0\.\d+, allowed at least"):
            export(run.directory, repository=versions, variants=("int8",), data_directory=None)
    publish(versions, candidate)


def alter_after_publishing(versions: Path, candidate: Path, url: str) -> None:
    """Publish a good candidate, flip one byte of what is served, promote."""
    manifest = publish(versions, candidate, max_slowdown=ANY_SLOWDOWN)
    path = versions / FRUIT_RESNET / str(manifest["version"]) / manifest["serve"]["cpu_model"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    promote(versions, manifest["version"], url=url)


def wrong_here(versions: Path, candidate: Path, url: str) -> None:
    """Publish a candidate whose golden answers are those of another processor, then promote."""
    manifest = publish(versions, candidate, max_slowdown=ANY_SLOWDOWN)
    directory = versions / FRUIT_RESNET / str(manifest["version"])
    golden = read_json(directory / "golden" / "golden.json")
    for one in golden["images"]:
        one["probabilities"] = one["probabilities"][1:] + one["probabilities"][:1]
    write_json(directory / "golden" / "golden.json", golden)
    manifest["files"]["golden/golden.json"]["sha256"] = sha256_file(directory / "golden" / "golden.json")
    write_json(directory / MANIFEST_NAME, manifest)
    promote(versions, manifest["version"], url=url)


@pytest.mark.parametrize(
    ("attempt", "error", "reason"),
    [
        pytest.param(publish_changed(candidates.truncated), GateFailed, "structure", id="truncated"),
        pytest.param(publish_changed(candidates.wrong_classes), ArtefactError, "other classes", id="classes"),
        pytest.param(publish_changed(candidates.nan_weights), GateFailed, "extreme_pixels", id="nan"),
        pytest.param(
            publish_changed(candidates.wrong_input_shape), GateFailed, "PIXELS", id="wrong input shape"
        ),
        pytest.param(alter_after_publishing, ArtefactError, "altered", id="altered after publishing"),
        pytest.param(
            export_inaccurate,
            GateFailed,
            r"int8_\w+_top1_agreement",
            id="accuracy below the gate",
            marks=pytest.mark.nightly,
        ),
        pytest.param(publish_changed(candidates.failed_gate), GateFailed, "top1_loss", id="a gate's number"),
        pytest.param(publish_changed(candidates.unchecked), GateFailed, "not checked", id="no accuracy gate"),
        pytest.param(publish_changed(candidates.other_answers), GateFailed, "golden", id="wrong answers"),
        pytest.param(
            publish_changed(candidates.slow),
            GateFailed,
            "slowdown",
            id="twice as slow",
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            publish_changed(candidates.external_data), GateFailed, "outside the file", id="external data"
        ),
        pytest.param(wrong_here, GateFailed, "answers .* differently", id="wrong on this processor"),
    ],
)
def test_a_bad_candidate_serves_no_request(
    attempt: Callable[[Path, Path, str], None],
    error: type[FruitstandError],
    reason: str,
    versions: Path,
    live: EmbeddedServer,
    second_run: Path,
    batch: np.ndarray,
    tmp_path: Path,
) -> None:
    """The old version answers throughout, and the log says what was refused and why."""
    promote(versions, 1, url=live.url)
    expected = ask_once(live, batch)[1]
    copy = shutil.copytree(second_run, tmp_path / "second", ignore=shutil.ignore_patterns("export"))
    candidate = candidates.copy_candidate(second_run / "export", copy)
    with Caller(live, batch[:1]) as caller:
        caller.wait_for_an_answer()
        started = time.monotonic()
        with pytest.raises(error, match=reason):
            attempt(versions, candidate, live.url)
        ended = time.monotonic()
        caller.wait_for_an_answer()
    assert caller.failures == []
    assert any(one.sent < ended and one.came > started for one in caller.answers), "nobody asked meanwhile"
    for one in caller.answers:
        assert one.version == 1
        assert np.abs(one.probabilities - expected[:1]).max() <= MAX_DIFFERENCE
    assert ask_once(live, batch)[0] == 1
    entry = read_audit(versions)[-1]
    assert entry["done"] is False
    assert entry["reason"]
    for number in published_versions(versions)[2:]:
        shutil.rmtree(versions / FRUIT_RESNET / str(number))


def test_a_promotion_without_its_server_changes_nothing(
    versions: Path, live: EmbeddedServer, second_run: Path, batch: np.ndarray, tmp_path: Path
) -> None:
    """No server at the address, or a server that reads another repository."""
    promote(versions, 1, url=live.url)
    before = serving_state(versions)
    with pytest.raises(ServerError, match="did not answer"):
        promote(versions, 2, url="127.0.0.1:1")
    assert serving_state(versions) == before
    copy = shutil.copytree(versions, tmp_path / "repository")
    third = publish(copy, second_run / "export", max_slowdown=ANY_SLOWDOWN)["version"]
    with pytest.raises(ServerError, match="did not answer"):  # the server knows no such version
        promote(copy, third, url=live.url)
    assert serving_state(copy) == before
    shutil.rmtree(copy / FRUIT_RESNET / "1")
    with pytest.raises(ServerError, match="does the server read another"):
        promote(copy, 2, url=live.url)
    assert ask_once(live, batch)[0] == 1


def test_what_answers_is_not_unloaded_when_the_repository_says_otherwise(
    versions: Path, live: EmbeddedServer, batch: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    """Promoted without its server in between: the running one still answers with the old version."""
    promote(versions, 1, url=live.url)
    promote(versions, 2, url=None)
    assert ask_once(live, batch)[0] == 1
    assert promote(versions, 2, url=live.url) == ServingState(2, 1)
    assert ask_once(live, batch)[0] == 2
    assert "version 1 answers, another than the repository's" in caplog.text
    promote(versions, 1, url=live.url)


def test_ctrl_c_before_the_switch_is_undone(
    versions: Path, live: EmbeddedServer, batch: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new version is loaded by then; the old one answers, and is the only one left."""
    promote(versions, 1, url=live.url)
    before = serving_state(versions)

    def interrupted(server: LiveServer, version: Version) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LiveServer, "check_golden", interrupted)
    with pytest.raises(KeyboardInterrupt):
        promote(versions, 2, url=live.url)
    assert serving_state(versions) == before
    assert loaded_versions(versions) == [1]
    assert ask_once(live, batch)[0] == 1
    assert read_audit(versions)[-1]["reason"] == "KeyboardInterrupt"


@pytest.mark.parametrize(
    "failure",
    [pytest.param(OSError("disk full"), id="disk"), pytest.param(KeyboardInterrupt(), id="ctrl-c")],
)
def test_what_fails_after_the_switch_is_a_warning(
    failure: BaseException,
    versions: Path,
    live: EmbeddedServer,
    batch: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The new version answers, and the log says so; only the list of what to load has one too many."""
    promote(versions, 1, url=live.url)
    writes = []

    def write_twice(*arguments: object, **options: object) -> None:
        writes.append(arguments)
        if len(writes) == 3:
            raise failure
        write_served(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("export.publish.promote.write_served", write_twice)
        assert promote(versions, 2, url=live.url).version == 2
    assert ask_once(live, batch)[0] == 2
    assert read_audit(versions)[-1]["done"] is True
    assert "a server that starts would load 1 too" in caplog.text
    promote(versions, 1, url=live.url)
    assert loaded_versions(versions) == [1]


@pytest.mark.scaled
@pytest.mark.timeout(900)
def test_a_live_promotion_that_is_killed_leaves_a_server_that_answers(
    versions: Path, live: EmbeddedServer, batch: np.ndarray, tmp_path: Path
) -> None:
    """With one of the two versions; the next promotion asks which, and puts the rest right."""
    promote(versions, 1, url=live.url)
    expected = ask_once(live, batch)[1]
    dice = random.Random(3)
    with Crasher(tmp_path) as crasher:
        changes = crasher.do("promote", versions, url=live.url)["changes"]
        promote(versions, 1, url=live.url)
        for kill_at in dice.sample(range(1, changes + 1), NUM_KILLS):
            with Caller(live, batch) as caller:
                caller.wait_for_an_answer()
                assert crasher.do("promote", versions, kill_at=kill_at, url=live.url)["status"] == -9
                assert_whole(versions)
                caller.wait_for_an_answer()
                assert promote(versions, 1, url=live.url).version == 1
                caller.wait_for_an_answer()
            assert caller.failures == []
            assert {one.version for one in caller.answers} <= {1, 2}
            version, answer = ask_once(live, batch)
            assert (version, loaded_versions(versions), litter(versions)) == (1, [1], [])
            assert np.abs(answer - expected).max() <= MAX_DIFFERENCE
