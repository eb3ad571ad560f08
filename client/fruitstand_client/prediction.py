"""The answer for one image."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RankedLabel:
    """A class and how probable it is."""

    label: str
    probability: float
    """0 to 1."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the server said of one image: an answer, or an error and no answer."""

    path: str
    """The image's name, as given by the caller."""
    top_k: tuple[RankedLabel, ...] = ()
    """Most probable first."""
    model_version: str | None = None
    """Of the model that gave this answer."""
    error: str | None = None
    """Why this image has no answer."""

    @property
    def label(self) -> str | None:
        """The most probable class."""
        return self.top_k[0].label if self.top_k else None

    @property
    def probability(self) -> float | None:
        """Of `label`, 0 to 1."""
        return self.top_k[0].probability if self.top_k else None

    def to_dict(self) -> dict[str, Any]:
        """One row of the jsonl output."""
        return {
            "path": self.path,
            "label": self.label,
            "probability": self.probability,
            "top_k": [{"label": one.label, "probability": one.probability} for one in self.top_k],
            "model_version": self.model_version,
            "error": self.error,
        }
