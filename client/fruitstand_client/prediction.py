"""The answer for one image."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from fruitstand_client.errors import RequestFailed


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

    @property
    def label(self) -> str | None:
        """The most probable class."""
        return self.top_k[0].label if self.top_k else None

    @property
    def probability(self) -> float | None:
        """Probability of `label`, 0 to 1."""
        return self.top_k[0].probability if self.top_k else None

    @property
    def error(self) -> str | None:
        """The failure's message, one line."""
        return None if self.failure is None else str(self.failure)

    def to_dict(self) -> dict[str, Any]:
        """One row of the jsonl output."""
        return {
            "path": self.path,
            "label": self.label,
            "probability": self.probability,
            "top_k": [{"label": label, "probability": probability} for label, probability in self.top_k],
            "model_version": self.model_version,
            "converted_from": self.converted_from,
            "error": self.error,
        }
