"""Samples of classified images for drift detection: statistics, answers, and optionally the pixels.

The server writes samples while it serves (`serving.engine.sampler`). The export writes those of the
validation images into each version (`drift_reference.npz`). `fruitstand drift record` writes those of any
images. numpy is imported inside the functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fruitstand.artefacts import atomic_file
from fruitstand.errors import ArtefactError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

REFERENCE_NAME = "drift_reference.npz"
"""File name in a version's folder."""
UNNUMBERED = 0
"""Version number of samples that were written before their version was published."""
IMAGE_STATISTICS = ("brightness", "contrast", "saturation", "sharpness", "border_whiteness")
"""Statistics of a decoded image; `sharpness` is the variance of the Laplacian, the others are 0 to 1."""
WHITE = 240
"""A border pixel is white if all three values reach this, as in the background of Fruits-360."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """N classified images."""

    statistics: "npt.NDArray[np.float32]"
    """(N, 5), see `IMAGE_STATISTICS`."""
    predicted: "npt.NDArray[np.int32]"
    """(N,), index of the most probable class."""
    confidence: "npt.NDArray[np.float32]"
    """(N,), probability of this class, 0 to 1."""
    entropy: "npt.NDArray[np.float32]"
    """(N,), entropy of the probabilities, nats."""
    features: "npt.NDArray[np.float32]"
    """(N, D), the model's pooled features; D is 0 if the model does not export them."""
    known: "npt.NDArray[np.float32]"
    """(N,), similarity to the training images, 0 to 1; NaN if the version was not calibrated."""
    pixels: "npt.NDArray[np.uint8]"
    """(M, H, W, 3), RGB of the first M images; M is 0 if no images are kept."""

    def __len__(self) -> int:
        return len(self.predicted)

    def rows(self, indices: "npt.NDArray[np.intp]") -> "Samples":
        """Select samples by index, without their pixels."""
        columns = {name: getattr(self, name)[indices] for name in self.__slots__ if name != "pixels"}
        return Samples(**columns, pixels=self.pixels[:0])


def image_statistics(pixels_hwc_u8: "npt.NDArray[np.uint8]") -> "npt.NDArray[np.float32]":
    """The `IMAGE_STATISTICS` of one (H, W, 3) RGB image."""
    import numpy as np

    high, low = pixels_hwc_u8.max(axis=2), pixels_hwc_u8.min(axis=2)
    luma = pixels_hwc_u8 @ np.array([0.299, 0.587, 0.114], np.float32)
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * luma[1:-1, 1:-1]
    border = np.concatenate([low[0], low[-1], low[1:-1, 0], low[1:-1, -1]])
    values = [
        luma.mean() / 255,
        luma.std() / 255,
        ((high - low) / np.maximum(high, 1)).mean(),
        laplacian.var(),
        (border >= WHITE).mean(),
    ]
    return np.array(values, np.float32)


def describe(
    pixels_nhwc_u8: "npt.NDArray[np.uint8]",
    probabilities: "npt.NDArray[np.float32]",
    features: "npt.NDArray[np.float32] | None" = None,
    known: "npt.NDArray[np.float32] | None" = None,
    *,
    num_kept: int = 0,
) -> Samples:
    """Compute the samples of classified images.

    Args:
        pixels_nhwc_u8: (N, H, W, 3) RGB, the model's input.
        probabilities: (N, C), the model's answers.
        features: (N, D), if the model exports them.
        known: (N,) or (N, 1), if the version was calibrated.
        num_kept: number of images whose pixels are kept.
    """
    import numpy as np

    positive = np.maximum(probabilities, 1e-12)
    return Samples(
        statistics=np.stack([image_statistics(one) for one in pixels_nhwc_u8]),
        predicted=probabilities.argmax(axis=1).astype(np.int32),
        confidence=probabilities.max(axis=1).astype(np.float32),
        entropy=-(positive * np.log(positive)).sum(axis=1).astype(np.float32),
        features=np.empty((len(probabilities), 0), np.float32)
        if features is None
        else features.astype(np.float32),
        known=np.full(len(probabilities), np.nan, np.float32) if known is None else known.reshape(-1),
        pixels=pixels_nhwc_u8[:num_kept],
    )


def write_samples(path: Path, samples: Samples, *, version: int, labels: Sequence[str] = ()) -> None:
    """Write samples atomically.

    `version` is the one that answered; `labels` are its classes, empty if unknown.
    """
    import numpy as np

    arrays: dict[str, Any] = {name: getattr(samples, name) for name in Samples.__slots__}
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, version=np.array(version), labels=np.array(list(labels), dtype=np.str_), **arrays)


def read_samples(path: Path) -> tuple[Samples, int, list[str]]:
    """Read samples, the version that answered, and its classes if they were written.

    Raises:
        ArtefactError: the file is missing, damaged, or empty.
    """
    import io
    import zipfile

    import numpy as np

    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in Samples.__slots__ if name != "known"}
            # Files from before the models were calibrated have no such column.
            unknown = np.full(len(arrays["predicted"]), np.nan, np.float32)
            samples = Samples(**arrays, known=file.get("known", unknown))
            version, labels = int(file["version"]), [str(one) for one in file["labels"]]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as exc:
        raise ArtefactError(f"{path}: no readable samples ({exc}); record them again") from exc
    lengths = {len(getattr(samples, name)) for name in Samples.__slots__ if name != "pixels"}
    if lengths != {len(samples)} or not len(samples):
        raise ArtefactError(f"{path}: holds no sample, or columns of different lengths; record it again")
    return samples, version, labels


def join_samples(parts: Sequence[Samples]) -> Samples:
    """Concatenate samples.

    Raises:
        ArtefactError: they come from different models.
    """
    import numpy as np

    try:
        return Samples(
            **{name: np.concatenate([getattr(one, name) for one in parts]) for name in Samples.__slots__}
        )
    except ValueError as exc:
        raise ArtefactError(f"samples of different models cannot be joined ({exc})") from exc
