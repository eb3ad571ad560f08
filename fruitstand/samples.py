"""Samples of classified images, which drift is measured on: numbers, and the image only if asked.

The server writes them while it serves (`serving.engine.sampler`), export writes those of the validation
images into each version (`drift_reference.npz`), `fruitstand drift record` makes them from a folder. numpy is
imported inside, as everywhere in this package.
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
"""In a version's folder."""
UNNUMBERED = 0
"""In place of a version's number, before it is published."""
IMAGE_STATISTICS = ("brightness", "contrast", "saturation", "sharpness", "border_whiteness")
"""Of one decoded image, in this order; `sharpness` is the Laplacian's variance, the others are 0 to 1."""
WHITE = 240
"""A border pixel whose three values all reach it is white, as the background of Fruits-360 is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """N classified images."""

    statistics: "npt.NDArray[np.float32]"
    """(N, 5), see `IMAGE_STATISTICS`."""
    predicted: "npt.NDArray[np.int32]"
    """(N,) index of the most probable class."""
    confidence: "npt.NDArray[np.float32]"
    """(N,) its probability, 0 to 1."""
    entropy: "npt.NDArray[np.float32]"
    """(N,) of all probabilities, nats."""
    features: "npt.NDArray[np.float32]"
    """(N, D) the model's pooled features; D is 0 where the model does not export them."""
    pixels: "npt.NDArray[np.uint8]"
    """(M, H, W, 3) RGB of the first M images; M is 0 where no image is kept."""

    def __len__(self) -> int:
        return len(self.predicted)

    def rows(self, indices: "npt.NDArray[np.intp]") -> "Samples":
        """Some of them, by index, without their pixels."""
        return Samples(
            statistics=self.statistics[indices],
            predicted=self.predicted[indices],
            confidence=self.confidence[indices],
            entropy=self.entropy[indices],
            features=self.features[indices],
            pixels=self.pixels[:0],
        )


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
    *,
    num_kept: int = 0,
) -> Samples:
    """Describe classified images.

    Args:
        pixels_nhwc_u8: (N, H, W, 3) RGB, as the model got them.
        probabilities: (N, C), what it answered.
        features: (N, D), where the model exports them.
        num_kept: of so many the pixels are kept.
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
        pixels=pixels_nhwc_u8[:num_kept],
    )


def write_samples(path: Path, samples: Samples, *, version: int, labels: Sequence[str] = ()) -> None:
    """Write samples atomically.

    Args:
        path: an .npz file.
        samples: at least one.
        version: of the model that answered.
        labels: its classes; empty where the writer does not know them.
    """
    import numpy as np

    arrays: dict[str, Any] = {name: getattr(samples, name) for name in Samples.__slots__}
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, version=np.array(version), labels=np.array(list(labels), dtype=np.str_), **arrays)


def read_samples(path: Path) -> tuple[Samples, int, list[str]]:
    """Samples, the version that answered, and its classes where they were written.

    Raises:
        ArtefactError: no such file, damaged, or nothing in it.
    """
    import io
    import zipfile

    import numpy as np

    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            samples = Samples(**{name: file[name] for name in Samples.__slots__})
            version, labels = int(file["version"]), [str(one) for one in file["labels"]]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as exc:
        raise ArtefactError(f"{path}: no readable samples ({exc}); record them again") from exc
    lengths = {len(getattr(samples, name)) for name in Samples.__slots__ if name != "pixels"}
    if lengths != {len(samples)} or not len(samples):
        raise ArtefactError(f"{path}: holds no sample, or columns of different lengths; record it again")
    return samples, version, labels


def join_samples(parts: Sequence[Samples]) -> Samples:
    """One after the other.

    Raises:
        ArtefactError: they come from models of different sizes.
    """
    import numpy as np

    try:
        return Samples(
            **{name: np.concatenate([getattr(one, name) for one in parts]) for name in Samples.__slots__}
        )
    except ValueError as exc:
        raise ArtefactError(f"samples of different models cannot be joined ({exc})") from exc
