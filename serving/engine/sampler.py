"""Sample served images for drift detection: a few per second, whatever the load.

FRUITSTAND_SAMPLES names the folder for the samples and turns sampling on. At most `FRUITSTAND_SAMPLES_PER_S`
images are sampled, by a separate thread; samples are dropped when it cannot keep up. Sampling cannot fail a
request: the first error is logged and ends it.
"""

import contextlib
import logging
import os
import queue
import threading
import time
from pathlib import Path

import numpy as np

from fruitstand.artefacts import sweep_temporaries
from fruitstand.contract import FRUIT_RESNET
from fruitstand.errors import UsageError
from fruitstand.samples import Samples, describe, join_samples, write_samples

log = logging.getLogger("fruitstand.backend")

FOLDER_VARIABLE = "FRUITSTAND_SAMPLES"
RATE_VARIABLE = "FRUITSTAND_SAMPLES_PER_S"
IMAGES_VARIABLE = "FRUITSTAND_SAMPLES_KEEP_IMAGES"
DEFAULT_RATE_PER_S = 4.0
FILE_SAMPLES, FILE_AGE_S = 100, 60.0
"""A file is written once it has this many samples, or its first sample is this old."""
MAX_FILES = 200
"""Above this number the oldest file is removed: 20,000 samples, about 40 MB with 512 features each."""
QUEUE_LENGTH = 32


def sampler_from_environment(model: str, version: int) -> "Sampler | None":
    """The sampler of one model instance; None if FRUITSTAND_SAMPLES is not set.

    Args:
        model: its name; a model with another than the default's writes into a folder of that name.
        version: of the model.

    Raises:
        UsageError: the rate is not a positive number.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return None
    text = os.environ.get(RATE_VARIABLE, str(DEFAULT_RATE_PER_S))
    try:
        rate_per_s = float(text)
    except ValueError:
        rate_per_s = 0.0
    if not 0 < rate_per_s <= 1000:
        raise UsageError(f"{RATE_VARIABLE}: got {text!r}, allowed a number above 0, at most 1000")
    keep_images = os.environ.get(IMAGES_VARIABLE) == "1"
    own = Path(folder) if model == FRUIT_RESNET else Path(folder, model)
    return Sampler(own, version=version, rate_per_s=rate_per_s, keep_images=keep_images)


class Sampler:
    """Samples some of the served images and writes them in the format of `fruitstand.samples`."""

    def __init__(self, folder: Path, *, version: int, rate_per_s: float, keep_images: bool) -> None:
        """Start the sampling thread.

        Args:
            folder: folder for the files.
            version: the model version.
            rate_per_s: largest number of samples per second.
            keep_images: keep the pixels too.
        """
        self._folder, self._version, self._keep_images = folder, version, keep_images
        self._interval_s = 1 / rate_per_s
        self._next_s = 0.0
        self._draw = np.random.default_rng()
        self._queue: queue.Queue[tuple[np.ndarray | None, ...] | None] = queue.Queue(QUEUE_LENGTH)
        self._thread = threading.Thread(target=self._work, name="sampler", daemon=True)
        self._thread.start()

    def is_due(self) -> bool:
        """Whether a sample is due."""
        return time.monotonic() >= self._next_s and self._thread.is_alive()

    @property
    def next_in_s(self) -> float:
        """Seconds until the next sample is due; 0 or less if one is."""
        return self._next_s - time.monotonic() if self._thread.is_alive() else float(2**31)

    def offer(
        self,
        pixels_nhwc_u8: np.ndarray,
        probabilities: np.ndarray,
        features: np.ndarray | None = None,
        known: np.ndarray | None = None,
    ) -> None:
        """Offer a batch; if a sample is due, one of its images is copied."""
        if not self.is_due():
            return
        now_s = time.monotonic()
        # Random intervals: with fixed ones, periodic traffic would always sample the same caller.
        self._next_s = now_s + self._interval_s * self._draw.uniform(0.5, 1.5)
        row = int(self._draw.integers(len(pixels_nhwc_u8)))
        batch = (pixels_nhwc_u8, probabilities, features, known)
        sample = tuple(None if one is None else one[row : row + 1].copy() for one in batch)
        with contextlib.suppress(queue.Full):  # drop the sample: serving comes first
            self._queue.put_nowait(sample)

    def close(self) -> None:
        """Write the remaining samples and end the thread."""
        while self._thread.is_alive():  # a failed thread no longer empties the queue
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=0.1)
                break
        self._thread.join(timeout=10)

    def _work(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            sweep_temporaries(self._folder)
            while self._collect_file():
                pass
        except Exception as exc:  # sampling must not fail a request
            log.warning("sampling for drift ends: %s: %s", type(exc).__name__, exc)

    def _collect_file(self) -> bool:
        """Collect and write one file; returns False when sampling ends."""
        parts: list[Samples] = []
        write_at_s = float("inf")
        while len(parts) < FILE_SAMPLES:
            wait_s = None if not parts else max(0.0, write_at_s - time.monotonic())
            try:
                sample = self._queue.get(timeout=wait_s)
            except queue.Empty:
                break
            if sample is None:
                self._write(parts)
                return False
            if not parts:
                write_at_s = time.monotonic() + FILE_AGE_S
            parts.append(describe(*sample, num_kept=int(self._keep_images)))
        self._write(parts)
        return True

    def _write(self, parts: list[Samples]) -> None:
        if not parts:
            return
        # The time makes names sort by age; the process id keeps apart instances that share the folder.
        name = f"{time.time_ns():020}-{os.getpid()}.npz"
        write_samples(self._folder / name, join_samples(parts), version=self._version)
        for path in sorted(self._folder.glob("*.npz"))[:-MAX_FILES]:
            path.unlink(missing_ok=True)
