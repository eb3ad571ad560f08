"""Sample served images for drift detection: a few per second, whatever the load.

FRUITSTAND_SAMPLES names the folder for the samples and turns sampling on. At most `FRUITSTAND_SAMPLES_PER_S`
images are sampled, by a separate thread; samples are dropped when it cannot keep up. Sampling cannot fail a
request: the first error is logged and ends it. `serving.engine.recorder` records encoded images beside them.
"""

import contextlib
import os
import queue
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fruitstand.contract import FRUIT_RESNET
from fruitstand.errors import UsageError
from fruitstand.sampling.samples import Samples, describe, join_samples, write_samples
from serving.engine.sample_files import SampleFiles

FOLDER_VARIABLE = "FRUITSTAND_SAMPLES"
RATE_VARIABLE = "FRUITSTAND_SAMPLES_PER_S"
IMAGES_VARIABLE = "FRUITSTAND_SAMPLES_KEEP_IMAGES"
DEFAULT_RATE_PER_S = 4.0
FILE_SAMPLES = 100
MAX_FILES = 200
"""Above this number the oldest file is removed: 20,000 samples, about 40 MB with 512 features each."""
QUEUE_LENGTH = 32


def sampling_rate_per_s() -> float:
    """The largest number of samples per second, from the environment.

    Raises:
        UsageError: it is not a positive number.
    """
    text = os.environ.get(RATE_VARIABLE, str(DEFAULT_RATE_PER_S))
    try:
        rate_per_s = float(text)
    except ValueError:
        rate_per_s = 0.0
    if not 0 < rate_per_s <= 1000:
        raise UsageError(f"{RATE_VARIABLE}: got {text!r}, allowed a number above 0, at most 1000")
    return rate_per_s


def sampler_from_environment(model: str, version: int) -> "Sampler | None":
    """The sampler of one model instance; None if FRUITSTAND_SAMPLES is not set.

    Raises:
        UsageError: the rate is not a positive number.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return None
    keep_images = os.environ.get(IMAGES_VARIABLE) == "1"
    own = Path(folder) if model == FRUIT_RESNET else Path(folder, model)
    return Sampler(own, version=version, rate_per_s=sampling_rate_per_s(), keep_images=keep_images)


class Taken(NamedTuple):
    """One image of a batch; every array keeps the batch axis."""

    pixels: np.ndarray
    """(1, H, W, 3) uint8."""
    probabilities: np.ndarray
    features: np.ndarray | None
    known: np.ndarray | None


class Sampler(SampleFiles[Taken, Samples]):
    """Samples some of the served images and writes them in the format of `fruitstand.sampling.samples`."""

    def __init__(self, folder: Path, *, version: int, rate_per_s: float, keep_images: bool) -> None:
        self._version, self._keep_images = version, keep_images
        self._interval_s = 1 / rate_per_s
        self._next_s = 0.0
        self._draw = np.random.default_rng()
        super().__init__(folder, name="sampling for drift", queue_length=QUEUE_LENGTH)

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
        sample = Taken(*(None if one is None else one[row : row + 1].copy() for one in batch))
        with contextlib.suppress(queue.Full):  # drop the sample: serving comes first
            self._queue.put_nowait(sample)

    def _part(self, taken: Taken) -> Samples:
        return describe(*taken, num_kept=int(self._keep_images))

    def _is_full(self, parts: list[Samples]) -> bool:
        return len(parts) >= FILE_SAMPLES

    def _write(self, path: Path, parts: list[Samples]) -> None:
        write_samples(path, join_samples(parts), version=self._version)
        for old in sorted(self._folder.glob("*.npz"))[:-MAX_FILES]:
            old.unlink(missing_ok=True)
