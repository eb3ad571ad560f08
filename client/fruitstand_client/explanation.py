"""Explanations of an answer: heat maps, and the most similar training images."""

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fruitstand.contract import (
    ACTIVATION,
    CROP,
    NEIGHBOURS,
    PROBABILITIES,
    THUMBNAILS,
)
from fruitstand.images.thumbnail import MAX_DIFFERENCE
from fruitstand_client.errors import ServerFailure
from fruitstand_client.prediction import RankedLabel
from fruitstand_client.wire import Wire, ranked_labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

OUTPUTS = (PROBABILITIES, ACTIVATION, NEIGHBOURS, THUMBNAILS, CROP)
ALL_CLASSES = 2**31 - 1
"""More than any network has: the answer then names every class, which the neighbours are numbered by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbour:
    """A training image."""

    label: str
    similarity: float
    """Cosine of its pooled features with those of the image asked about, 1 for the same."""
    difference: float
    """Mean absolute difference of the two as 12x12 thumbnails, of 255 levels."""
    picture: bytes
    """A small WebP file."""

    @property
    def is_nearly_identical(self) -> bool:
        """Whether the image asked about is this one, or a neighbouring frame of the same film."""
        return self.difference <= MAX_DIFFERENCE


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """The part of a picture that the maps cover: the centre crop that the network saw."""

    aspect: float
    """Width / height of the network's input."""
    share: float
    """Of the picture's sides that is kept, 0.5 to 1."""
    is_squashed: bool
    """Both sides were resized by themselves; else the shorter one decides, and the longer one is cut."""

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the crop in a picture of this size, pixels."""
        kept_width, kept_height = float(width), float(height)
        if not self.is_squashed:
            kept_width, kept_height = min(width, height * self.aspect), min(height, width / self.aspect)
        kept_width, kept_height = kept_width * self.share, kept_height * self.share
        left, top = (width - kept_width) / 2, (height - kept_height) / 2
        return round(left), round(top), round(left + kept_width), round(top + kept_height)


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """An answer and its reasons."""

    ranked: tuple[RankedLabel, ...]
    """All classes, the most probable first. Computed in fp32: a prediction may differ in the last digits."""
    activations: "NDArray[np.float32]"
    """(k, h, w) class activation maps of the first k of `ranked`, 0 to 1."""
    crop: Crop
    neighbours: tuple[Neighbour, ...]
    """The nearest of the training images that the version keeps, the nearest first."""
    model_version: str


def explain_request(wire: Wire, encoded: bytes, timeout_s: float, *, model: str) -> Any:
    """A ModelInferRequest for one image's explanation.

    The explainer is named like its classifier, `model`.
    """
    request = wire.request([encoded], ALL_CLASSES, timeout_s)
    request.model_name = model.removesuffix("_classifier") + "_explainer"
    del request.outputs[1:]  # the explainer does not say what it does not know
    for name in OUTPUTS[1:]:
        request.outputs.add(name=name)
    return request


def read_explanation(response: Any) -> Explanation:
    """The explanation in a ModelInferResponse.

    Raises:
        ServerFailure: the response is no explanation.
    """
    try:
        raw = {
            one.name: content
            for one, content in zip(response.outputs, response.raw_output_contents, strict=True)
        }
        shapes = {one.name: tuple(one.shape)[1:] for one in response.outputs}
        ranked, names = ranked_labels(raw[PROBABILITIES])
        arrays = {
            name: np.frombuffer(raw[name], "<f4").reshape(shapes[name])
            for name in (ACTIVATION, NEIGHBOURS, CROP)
        }
        pictures = np.frombuffer(raw[THUMBNAILS], np.uint8).reshape(shapes[THUMBNAILS])
        aspect, share, squash = (float(value) for value in arrays[CROP])
        neighbours = tuple(
            Neighbour(
                label=names[int(number)],
                similarity=float(similarity),
                difference=float(difference),
                picture=_unpadded(picture.tobytes()),
            )
            for (number, similarity, difference), picture in zip(arrays[NEIGHBOURS], pictures, strict=True)
        )
    except (ValueError, KeyError, IndexError, struct.error) as exc:
        raise ServerFailure(f"an explanation that cannot be read: {exc}") from exc
    return Explanation(
        ranked=ranked,
        activations=arrays[ACTIVATION],
        crop=Crop(aspect=aspect, share=share, is_squashed=squash > 0),
        neighbours=neighbours,
        model_version=response.model_version,
    )


def _unpadded(webp: bytes) -> bytes:
    """The file without trailing zeros; a RIFF file states its own length."""
    return webp[: 8 + int.from_bytes(webp[4:8], "little")]
