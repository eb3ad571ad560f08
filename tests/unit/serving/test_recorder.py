import logging
import stat
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fruitstand.contract import IMAGE_DECODE, Preprocessing
from fruitstand.errors import ArtefactError, UsageError
from fruitstand.images.synthetic import canary_image, encode, pattern
from fruitstand.sampling.recording import RECORDING_FOLDER, read_recordings
from serving.engine import recorder as module
from serving.engine.recorder import Recorder, recorder_from_environment

EVERYTHING = 1000.0
"""Images/s."""


def recorder(folder: Path, *, max_bytes: int = 2**30, rate_per_s: float = EVERYTHING) -> Recorder:
    """One that keeps nearly everything."""
    return Recorder(folder, max_bytes=max_bytes, rate_per_s=rate_per_s, preprocessing=Preprocessing())


def jpeg(number: int) -> np.ndarray:
    """An encoded image of its own."""
    return np.frombuffer(encode(pattern(64, 48, phase=number)), np.uint8)


def test_images_come_back_as_they_were_with_their_arrivals(tmp_path: Path) -> None:
    """Without the padding of a batch, oldest first, from one file that its owner alone can read."""
    images = [jpeg(number) for number in range(3)]
    padded = np.concatenate([images[2], np.zeros(100, np.uint8)])
    one = recorder(tmp_path)
    one.offer([images[0], images[1]], 1_000)
    one.offer([padded], 3_500)
    one.close()
    (path,) = tmp_path.glob("*.npz")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    recording = read_recordings(tmp_path, max_images=10)
    assert recording.images == [image.tobytes() for image in images]
    assert recording.arrived_ns.tolist() == [1_000, 1_000, 3_500]
    assert recording.num_passed == 3
    newest = read_recordings(path, max_images=1)
    assert (newest.images, newest.num_passed) == ([images[2].tobytes()], 1)


def test_where_a_photograph_was_taken_is_not_recorded(tmp_path: Path) -> None:
    """EXIF goes, except how the picture has to be turned."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "SECRET MAKER"
    photo = np.frombuffer(encode(pattern(64, 48), exif=exif), np.uint8)
    assert b"SECRET" in photo.tobytes()
    one = recorder(tmp_path)
    one.offer([photo], 1)
    one.close()
    (kept,) = read_recordings(tmp_path, max_images=1).images
    assert b"SECRET" not in kept
    assert b"Exif" in kept


def test_the_clock_bounds_what_is_kept_and_all_is_counted(tmp_path: Path) -> None:
    """A thousand batches in a moment are a few images."""
    one = recorder(tmp_path, rate_per_s=4.0)
    images, started_s = [jpeg(0), jpeg(1)], time.monotonic()
    for number in range(1000):
        one.offer(images, number)
    elapsed_s = time.monotonic() - started_s
    one.close()
    recording = read_recordings(tmp_path, max_images=2000)
    assert 4 <= len(recording) <= 4 + 1.5 * 4 * elapsed_s
    assert recording.num_passed == 2000


def test_health_checks_are_not_traffic(tmp_path: Path) -> None:
    """Their image is known."""
    one = recorder(tmp_path)
    one.offer([np.frombuffer(canary_image(), np.uint8)], 1)
    one.offer([jpeg(0)], 2)
    one.close()
    recording = read_recordings(tmp_path, max_images=10)
    assert (len(recording), recording.num_passed) == (1, 1)


def test_the_oldest_go_when_the_folder_reaches_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit holds for all files together, also those of an earlier server."""
    monkeypatch.setattr(module, "FILE_IMAGES", 1)
    image, size_bytes = jpeg(0), 0
    for arrived_ns in range(6):
        one = recorder(tmp_path, max_bytes=3 * size_bytes + 10 if size_bytes else 2**30)
        one.offer([image], arrived_ns)
        one.close()
        size_bytes = max(path.stat().st_size for path in tmp_path.glob("*.npz"))
    assert read_recordings(tmp_path, max_images=10).arrived_ns.tolist() == [3, 4, 5]
    assert not list(tmp_path.glob(".tmp-*"))


def test_what_waits_for_a_slow_disk_is_bounded_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is dropped, and still counted."""
    image = jpeg(0)
    monkeypatch.setattr(module, "QUEUE_BYTES", 2 * image.size)
    monkeypatch.setattr(Recorder, "_work", lambda self: time.sleep(0.5))
    one = recorder(tmp_path)
    one.offer([image] * 5, 1)
    assert (one._queue.qsize(), one._num_passed) == (2, 5)


def test_it_is_off_unless_a_limit_and_a_folder_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A limit alone is a warning, one that is no number is refused."""
    monkeypatch.delenv(module.FOLDER_VARIABLE, raising=False)
    monkeypatch.delenv(module.ENCODED_VARIABLE, raising=False)
    assert recorder_from_environment(IMAGE_DECODE, Preprocessing()) is None
    monkeypatch.setenv(module.ENCODED_VARIABLE, "16")
    with caplog.at_level(logging.WARNING):
        assert recorder_from_environment(IMAGE_DECODE, Preprocessing()) is None
    assert "FRUITSTAND_SAMPLES_ENCODED_MIB is ignored" in caplog.text
    monkeypatch.setenv(module.FOLDER_VARIABLE, str(tmp_path))
    for decode, folder in ((IMAGE_DECODE, tmp_path), ("birds_decode", tmp_path / "birds_model")):
        one = recorder_from_environment(decode, Preprocessing())
        assert one is not None
        one.close()
        assert (folder / RECORDING_FOLDER).is_dir()
    monkeypatch.setenv(module.ENCODED_VARIABLE, "much")
    with pytest.raises(UsageError, match="FRUITSTAND_SAMPLES_ENCODED_MIB: got 'much'"):
        recorder_from_environment(IMAGE_DECODE, Preprocessing())


def test_damaged_and_missing_recordings_are_told_in_one_line(tmp_path: Path) -> None:
    """With what to do."""
    with pytest.raises(UsageError, match="FRUITSTAND_SAMPLES_ENCODED_MIB=256"):
        read_recordings(tmp_path, max_images=1)
    with pytest.raises(UsageError, match="no such file or folder"):
        read_recordings(tmp_path / "nothing", max_images=1)
    (tmp_path / RECORDING_FOLDER).mkdir()
    (tmp_path / RECORDING_FOLDER / "1.npz").write_bytes(b"PK torn")
    with pytest.raises(ArtefactError, match="no readable recording"):
        read_recordings(tmp_path, max_images=1)
