"""The answer for one image."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from fruitstand.contract import KNOWN_LIMIT
from fruitstand_client.errors import RequestFailed

NOT_KNOWN = "not a known class"


class RankedLabel(NamedTuple):
    """A class and its probability."""

    label: str
    probability: float
    """0 to 1."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one image, or the failure."""

    path: str
    """Name of the image, as given by the caller."""
    top_k: tuple[RankedLabel, ...] = ()
    """Most probable first."""
    model_version: str | None = None
    """Version of the model that answered."""
    failure: RequestFailed | None = None
    """Why there is no answer; see the tree in `fruitstand_client.errors`."""
    converted_from: str | None = None
    """Format of the caller's file, such as HEIC, if it was converted before it was sent."""
    known: float | None = None
    """How similar the image is to the training images, 0 to 1; below 0.5 it shows no known class. None if the
    served version was not calibrated, such as an adopted model."""
    label_set: tuple[str, ...] | None = None
    """The classes that contain the right one for 95 % of such images, most probable first, at most `top_k`.
    May be empty. None if `known` is None."""
    abstain: bool = False
    """Whether `label` is None for an image of no known class."""

    @property
    def is_known(self) -> bool:
        """Whether the image shows a known class; True if the served version was not calibrated."""
        return self.known is None or self.known >= KNOWN_LIMIT

    @property
    def label(self) -> str | None:
        """The most probable class; None if the caller asked to abstain and the image is not known."""
        return self.top_k[0].label if self.top_k and (self.is_known or not self.abstain) else None

    @property
    def probability(self) -> float | None:
        """Probability of the most probable class, 0 to 1."""
        return self.top_k[0].probability if self.top_k else None

    @property
    def error(self) -> str | None:
        """Message of the failure, one line."""
        return None if self.failure is None else str(self.failure)

    def to_dict(self) -> dict[str, Any]:
        """One row of the jsonl output."""
        return {
            "path": self.path,
            "label": self.label,
            "probability": self.probability,
            "top_k": [{"label": label, "probability": probability} for label, probability in self.top_k],
            "known": self.known,
            "label_set": None if self.label_set is None else list(self.label_set),
            "model_version": self.model_version,
            "converted_from": self.converted_from,
            "error": self.error,
        }
