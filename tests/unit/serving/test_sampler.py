import logging
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fruitstand.contract import FRUIT_RESNET
from fruitstand.errors import UsageError
from fruitstand.sampling.samples import read_samples
from serving.engine import sampler as module
from serving.engine.sampler import Sampler, sampler_from_environment

PIXELS = np.full((4, 20, 20, 3), 200, np.uint8)
ANSWERS = np.full((4, 5), 0.2, np.float32)


def sampler(folder: Path, *, rate_per_s: float = 500.0, keep_images: bool = False) -> Sampler:
    """One that samples nearly everything."""
    return Sampler(folder, version=2, rate_per_s=rate_per_s, keep_images=keep_images)


def written(folder: Path) -> int:
    """Samples in all files, none of which is half written."""
    assert not list(folder.glob(".tmp-*"))
    return sum(len(read_samples(path)[0]) for path in folder.glob("*.npz"))


@pytest.mark.parametrize("keep_images", [False, True])
def test_what_was_offered_is_written_when_the_server_ends(tmp_path: Path, keep_images: bool) -> None:
    """With the version; with pixels only if they were asked for."""
    one = sampler(tmp_path, keep_images=keep_images)
    one.offer(PIXELS, ANSWERS)
    one.close()
    (path,) = tmp_path.glob("*.npz")
    samples, version, _ = read_samples(path)
    assert (len(samples), version, len(samples.pixels)) == (1, 2, int(keep_images))
    assert samples.confidence[0] == pytest.approx(0.2)


def test_the_clock_bounds_the_samples_not_the_traffic(tmp_path: Path) -> None:
    """Ten thousand batches in a moment are one or a few samples."""
    one = sampler(tmp_path, rate_per_s=1.0)
    started = time.monotonic()
    for _ in range(10_000):
        one.offer(PIXELS, ANSWERS)
    elapsed_s = time.monotonic() - started
    one.close()
    assert 1 <= written(tmp_path) <= 2 * elapsed_s + 1


def test_after_a_sample_none_is_due_for_a_while(tmp_path: Path) -> None:
    """Until then nobody has to make the features of a batch."""
    one = sampler(tmp_path, rate_per_s=0.01)
    assert one.is_due()
    one.offer(PIXELS, ANSWERS, np.ones((4, 3), np.float32))
    assert not one.is_due()
    one.close()
    (path,) = tmp_path.glob("*.npz")
    assert read_samples(path)[0].features.tolist() == [[1, 1, 1]]


def test_the_folder_never_grows_beyond_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest files go."""
    monkeypatch.setattr(module, "MAX_FILES", 3)
    monkeypatch.setattr(module, "FILE_SAMPLES", 1)
    one = sampler(tmp_path)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and len(list(tmp_path.glob("*.npz"))) < 3:
        one.offer(PIXELS, ANSWERS)
        time.sleep(0.002)
    first = min(tmp_path.glob("*.npz"))
    while time.monotonic() < deadline and first.exists():
        one.offer(PIXELS, ANSWERS)
        time.sleep(0.002)
    one.close()
    assert not first.exists()
    assert len(list(tmp_path.glob("*.npz"))) == 3


def test_a_folder_that_cannot_be_written_ends_the_sampling_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "taken").write_text("")
    with caplog.at_level(logging.WARNING):
        one = sampler(tmp_path / "taken")
        deadline = time.monotonic() + 10
        while one._thread.is_alive() and time.monotonic() < deadline:
            one.offer(PIXELS, ANSWERS)
        one.offer(PIXELS, ANSWERS)
        one.close()
    assert "sampling for drift ends" in caplog.text


def test_closing_waits_for_no_writer_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was alive when the server ended, the queue was full, and nobody takes from it any more."""
    fails = threading.Event()
    monkeypatch.setattr(module.Sampler, "_work", lambda _: fails.wait(60))
    one = sampler(tmp_path)
    while not one._queue.full():
        one._queue.put_nowait(None)
    closing = threading.Thread(target=one.close, daemon=True)
    closing.start()
    time.sleep(0.2)
    fails.set()
    closing.join(10)
    assert not closing.is_alive()


def test_it_is_off_unless_a_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a rate that is none is refused."""
    monkeypatch.delenv(module.FOLDER_VARIABLE, raising=False)
    assert sampler_from_environment(FRUIT_RESNET, 1) is None
    monkeypatch.setenv(module.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv(module.RATE_VARIABLE, "often")
    with pytest.raises(UsageError, match="FRUITSTAND_SAMPLES_PER_S"):
        sampler_from_environment(FRUIT_RESNET, 1)


def test_each_classifier_of_a_server_has_its_own_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default's stay where they always were; two models in one folder could not be told apart."""
    monkeypatch.setenv(module.FOLDER_VARIABLE, str(tmp_path))
    for model, folder in ((FRUIT_RESNET, tmp_path), ("birds_model", tmp_path / "birds_model")):
        one = sampler_from_environment(model, 1)
        one.offer(PIXELS, ANSWERS)
        one.close()
        assert written(folder) == 1
