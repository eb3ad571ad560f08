"""Recorded by the real server, replayed to two versions, and the gate of a promotion."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from deploy.retrain import promote as retrain_promote
from fruitstand.repository.audit_log import read_audit
from fruitstand.repository.versions import serving_state
from fruitstand.sampling.recording import RECORDING_FOLDER, Recording, read_recordings, write_recording
from fruitstand_client import Client
from scoring.replay import replay
from serving.triton.embedded import EmbeddedServer
from tests.command import fruitstand
from tests.planted_versions import repeat_version, swap_two_labels

GAP_S = 0.02
SWAPPED, ALIKE = 3, 4


@pytest.fixture(scope="module")
def versions(two_versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1, served, 2, 3, which confuses two classes, and 4, which answers as 1 does."""
    repository = Path(shutil.copytree(two_versions, tmp_path_factory.mktemp("replay") / "model_repository"))
    swap_two_labels(repository, 1, SWAPPED)
    repeat_version(repository, 1, ALIKE)
    return repository


@pytest.fixture(scope="module")
def samples(test_images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of at least 60 images."""
    folder = tmp_path_factory.mktemp("samples")
    images = [path.read_bytes() for path in test_images] * (60 // len(test_images) + 1)
    arrived_ns = 1_700_000_000_000_000_000 + np.arange(len(images)) * int(GAP_S * 1e9)
    whole = Recording(images=images, arrived_ns=arrived_ns, num_passed=len(images))
    write_recording(folder / RECORDING_FOLDER / "1.npz", whole)
    return folder


def content(repository: Path) -> dict[str, str]:
    """The hash of every file of a repository but the log of what was refused, and the lock."""
    return {
        path.relative_to(repository).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in repository.rglob("*")
        if path.is_file() and path.name not in ("audit.jsonl", ".lock")
    }


def test_the_gate_stops_a_version_with_two_swapped_labels(versions: Path, samples: Path) -> None:
    """One line says which classes changed; no file of the repository did."""
    before = content(versions)
    done = fruitstand(
        "models", "promote", SWAPPED, "--repository", versions, "--replay", samples, "--max-flips", "1%"
    )
    assert done.returncode == 1
    (said,) = [line for line in done.stderr.splitlines() if "error:" in line]
    assert "version 3 was not promoted" in said
    assert "another answer than version 1's, allowed 1.00%" in said
    assert content(versions) == before
    state = serving_state(versions)
    assert state is not None
    assert (state.version, state.previous) == (1, None)
    refused = read_audit(versions)[-1]
    assert (refused["action"], refused["version"], refused["done"]) == ("promote", SWAPPED, False)


def test_the_gate_lets_a_version_through_that_answers_alike(
    versions: Path, samples: Path, tmp_path: Path
) -> None:
    """What was compared is in the audit log."""
    own = Path(shutil.copytree(versions, tmp_path / "model_repository"))
    done = fruitstand("models", "promote", ALIKE, "--repository", own, "--replay", samples, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"] == ALIKE
    entry = read_audit(own)[-1]
    assert entry["replay"]["num_flips"] == 0
    assert entry["replay"]["num_images"] >= 60


def test_the_retraining_loop_promotes_through_the_gate_where_images_are_recorded(
    versions: Path, samples: Path, tmp_path: Path
) -> None:
    """Samples without recordings, as of a server that keeps none, ask for no replay."""
    own = Path(shutil.copytree(versions, tmp_path / "model_repository"))
    with pytest.raises(SystemExit):
        retrain_promote(own, SWAPPED, url=None, samples=samples, max_flips="5%")
    assert not read_audit(own)[-1]["done"]
    retrain_promote(own, SWAPPED, url=None, samples=tmp_path, max_flips="5%")
    state = serving_state(own)
    assert state is not None
    assert state.version == SWAPPED


def test_the_gate_needs_enough_images_and_a_share(versions: Path, samples: Path, tmp_path: Path) -> None:
    """Few images that all agree are no evidence."""
    whole = read_recordings(samples, max_images=10)
    write_recording(tmp_path / "1.npz", whole)
    few = fruitstand("models", "promote", 2, "--repository", versions, "--replay", tmp_path)
    assert few.returncode == 1
    assert "at least 50 are needed" in few.stderr
    wrong = fruitstand(
        "models", "promote", 2, "--repository", versions, "--replay", samples, "--max-flips", "few"
    )
    assert wrong.returncode == 2
    assert "--max-flips: got 'few'" in wrong.stderr


def test_the_page_shows_which_images_flipped(versions: Path, samples: Path, tmp_path: Path) -> None:
    """All images of the two classes, and no others."""
    result = replay(samples, repository=versions, version=SWAPPED, against=None, out=tmp_path)
    flipped = [one for one in result.classes if one.num_flips]
    assert len(flipped) == 2
    assert all(one.num_flips == one.num_images for one in flipped)
    assert [one.now for one in flipped] == [
        {flipped[1].label: flipped[0].num_flips},
        {flipped[0].label: flipped[1].num_flips},
    ]
    page = (tmp_path / "replay.html").read_text()
    assert page.count("<figure>") == result.num_flips
    assert json.loads((tmp_path / "replay.json").read_text()) == result.to_json()


@pytest.mark.parametrize("backends", ["host", "stub"])
def test_a_server_records_what_it_answers(
    repository: Path, test_images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backends: str
) -> None:
    """The bytes and the order; what was refused is not there, nor any health check."""
    monkeypatch.setenv("FRUITSTAND_BACKENDS", backends)
    monkeypatch.setenv("FRUITSTAND_SAMPLES", str(tmp_path / "samples"))
    monkeypatch.setenv("FRUITSTAND_SAMPLES_PER_S", "1000")
    monkeypatch.setenv("FRUITSTAND_SAMPLES_ENCODED_MIB", "16")
    with EmbeddedServer(repository, log_path=tmp_path / "triton.log") as server, Client(server.url) as client:
        for path in test_images[:5]:
            client.classify([path])
        (bad,) = client.classify([test_images[0].read_bytes()[:-200]])
        assert bad.error is not None
    recorded = read_recordings(tmp_path / "samples", max_images=1000)
    # Before them come the warm-up's and the golden images.
    assert recorded.images[-5:] == [path.read_bytes() for path in test_images[:5]]
    assert (np.diff(recorded.arrived_ns[-5:]) > 0).all()


@pytest.mark.nightly
@pytest.mark.parametrize("rate", ["recorded", "100", "max"])
def test_served_versions_answer_a_replay_as_offline_ones_do(
    versions: Path, samples: Path, rate: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No image is sent before it is due, none is lost, and the replay does not record itself."""
    monkeypatch.setenv("FRUITSTAND_SAMPLES", str(tmp_path / "own"))
    monkeypatch.setenv("FRUITSTAND_SAMPLES_ENCODED_MIB", "16")
    served = replay(samples, repository=versions, version=SWAPPED, against=1, rate=rate)
    offline = replay(samples, repository=versions, version=SWAPPED, against=1)
    assert served.num_compared == served.num_images == offline.num_images
    assert [(one.index, one.old, one.new) for one in served.flips] == [
        (one.index, one.old, one.new) for one in offline.flips
    ]
    if rate == "recorded":
        assert served.new.duration_s >= 0.999 * served.recorded_duration_s
    assert served.new.latency_p99_ms is not None
    assert not (tmp_path / "own").exists()
