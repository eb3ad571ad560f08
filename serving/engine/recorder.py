"""Record encoded images with their arrival times, for `fruitstand replay`.

FRUITSTAND_SAMPLES_ENCODED_MIB turns it on, beside the drift samples, and limits the size of the folder. It is
off by default because the images belong to callers.
"""

import contextlib
import logging
import os
import queue
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fruitstand.contract import IMAGE_DECODE, Preprocessing
from fruitstand.errors import UsageError
from fruitstand.images.structure import inspect_image
from fruitstand.images.synthetic import canary_image
from fruitstand.sampling.recording import PATTERN, RECORDING_FOLDER, Recording, write_recording
from serving.engine.sample_files import SampleFiles
from serving.engine.sampler import FOLDER_VARIABLE, sampling_rate_per_s

log = logging.getLogger("fruitstand.backend")

ENCODED_VARIABLE = "FRUITSTAND_SAMPLES_ENCODED_MIB"
FILE_IMAGES = 1000
FILES_IN_LIMIT = 16
"""A file is full at this fraction of the size limit, so that removing the oldest file keeps most images."""
QUEUE_LENGTH, QUEUE_BYTES = 4096, 64 * 2**20
"""Largest number and total size of images that wait for the thread; more are dropped."""


def recorder_from_environment(decode: str, preprocessing: Preprocessing) -> "Recorder | None":
    """The recorder of one decode instance; None if FRUITSTAND_SAMPLES_ENCODED_MIB is not set.

    Args:
        decode: name of the decode model. A repository with another name than the default's records beside its
            drift samples, see `fruitstand.repository.model_names`.
        preprocessing: the contract that the images are decoded with.

    Raises:
        UsageError: the size limit or the rate is not a valid number.
    """
    text, folder = os.environ.get(ENCODED_VARIABLE), os.environ.get(FOLDER_VARIABLE)
    if not text:
        return None
    if not folder:
        log.warning("%s is ignored: it needs %s", ENCODED_VARIABLE, FOLDER_VARIABLE)
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{ENCODED_VARIABLE}: got {text!r}, allowed a whole number of MiB from 1")
    own = Path(folder) if decode == IMAGE_DECODE else Path(folder, f"{decode.removesuffix('_decode')}_model")
    return Recorder(
        own / RECORDING_FOLDER,
        max_bytes=int(text) * 2**20,
        rate_per_s=sampling_rate_per_s(),
        preprocessing=preprocessing,
    )


class Arrival(NamedTuple):
    """One answered image."""

    encoded: bytes
    arrived_ns: int


class Recorder(SampleFiles[Arrival, Arrival]):
    """Keeps the newest answered images, up to a size limit."""

    def __init__(
        self, folder: Path, *, max_bytes: int, rate_per_s: float, preprocessing: Preprocessing
    ) -> None:
        self._max_bytes, self._rate_per_s, self._preprocessing = max_bytes, rate_per_s, preprocessing
        self._burst = self._allowance = max(1.0, rate_per_s)
        self._offered_s = time.monotonic()
        self._draw = np.random.default_rng()
        self._canary = np.frombuffer(canary_image(), np.uint8)
        # Each counter is written by one thread only, so no lock is needed.
        self._queued_bytes, self._taken_bytes = 0, 0
        self._num_passed, self._num_written = 0, 0
        super().__init__(folder, name="recording of encoded images", queue_length=QUEUE_LENGTH)

    def offer(self, encoded: Sequence[np.ndarray], arrived_ns: int) -> None:
        """Offer a batch of answered images; as many as the rate allows are copied.

        Args:
            encoded: one encoded image each, (size_bytes,) uint8, possibly padded with zeros.
            arrived_ns: arrival time, nanoseconds since 1970.
        """
        if not self._thread.is_alive():
            return
        images = [one for one in encoded if not np.array_equal(one, self._canary)]  # skip health checks
        now_s, before_s = time.monotonic(), self._offered_s
        # Random allowance: with a fixed one, periodic traffic would always sample the same caller.
        earned = (now_s - before_s) * self._rate_per_s * self._draw.uniform(0.5, 1.5)
        self._allowance, self._offered_s = min(self._burst, self._allowance + earned), now_s
        self._num_passed += len(images)
        num_kept = min(int(self._allowance), len(images))
        self._allowance -= num_kept
        for row in sorted(self._draw.choice(len(images), num_kept, replace=False)):
            size_bytes = images[row].size
            if self._queued_bytes - self._taken_bytes + size_bytes > QUEUE_BYTES:
                return  # drop the rest: serving comes first
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait(Arrival(images[row].tobytes(), arrived_ns))
                self._queued_bytes += size_bytes

    def _part(self, taken: Arrival) -> Arrival:
        self._taken_bytes += len(taken.encoded)
        # Strips padding and metadata, such as the place where a photograph was taken.
        content = inspect_image(taken.encoded, self._preprocessing).content
        return Arrival(bytes(content), taken.arrived_ns)

    def _is_full(self, parts: list[Arrival]) -> bool:
        size_bytes = sum(len(one.encoded) for one in parts)
        return len(parts) >= FILE_IMAGES or size_bytes >= self._max_bytes / FILES_IN_LIMIT

    def _write(self, path: Path, parts: list[Arrival]) -> None:
        num_passed = self._num_passed
        recording = Recording(
            images=[one.encoded for one in parts],
            arrived_ns=np.array([one.arrived_ns for one in parts], np.int64),
            num_passed=num_passed - self._num_written,
        )
        self._num_written = num_passed
        write_recording(path, recording)
        files = sorted(self._folder.glob(PATTERN), reverse=True)
        size_bytes = 0
        for one in files:
            with contextlib.suppress(FileNotFoundError):  # another instance removed it
                size_bytes += one.stat().st_size
                if size_bytes > self._max_bytes:
                    one.unlink()
