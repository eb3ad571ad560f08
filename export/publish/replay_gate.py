"""A gate of `models promote`: replay recorded traffic to the new version before anything changes.

It runs `fruitstand replay` offline in a process of its own, so anyone can repeat it by hand.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fruitstand.errors import GateFailed, UsageError
from fruitstand.stages import step

MIN_COMPARED = 50
"""Fewer images say too little about a share."""
NUM_CLASSES_NAMED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayGate:
    """Recorded traffic, and how many answers may change."""

    samples: Path
    max_flips: float
    """Largest share of images whose top class may change, 0 to 1."""

    def check(
        self, repository: Path, number: int, *, against: int, trusted_keys: Path | None
    ) -> dict[str, Any]:
        """Replay the traffic to both versions and compare their answers.

        Returns:
            The counts, for the audit log.

        Raises:
            GateFailed: too many answers changed, there are too few images, or the replay failed.
        """
        arguments = [self.samples, "--version", number, "--against", against, "--repository", repository]
        keys = [] if trusted_keys is None else ["--trusted-keys", trusted_keys]
        try:
            result = step("replay", *arguments, *keys)
        except SystemExit as exc:
            raise GateFailed(
                f"version {number} was not promoted: its replay ended with status {exc.code}, see above"
            ) from exc
        compared, flips = result["num_compared"], result["num_flips"]
        if compared < MIN_COMPARED:
            raise GateFailed(
                f"version {number} was not promoted: {self.samples} has {compared} images that both versions"
                f" answer, at least {MIN_COMPARED} are needed; record for longer"
            )
        if result["flip_share"] > self.max_flips:
            raise GateFailed(
                f"version {number} was not promoted: {flips} of {compared} recorded images"
                f" ({result['flip_share']:.2%}) get another answer than version {against}'s, allowed"
                f" {self.max_flips:.2%} (most: {_most(result['classes'])}); look at them with 'fruitstand"
                f" replay {self.samples} --version {number} --against {against} --out DIR'"
            )
        return {"against": against, "num_images": compared, "num_flips": flips}


def read_share(text: str) -> float:
    """Parse a share such as `1%` or `0.01`.

    Raises:
        UsageError: the text is not a share from 0 to 1.
    """
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UsageError(f"--max-flips: got {text!r}, allowed 0% to 100%, or a share such as 0.01")
    return share


def _most(classes: list[dict[str, Any]]) -> str:
    flipped = [one for one in classes[:NUM_CLASSES_NAMED] if one["num_flips"]]
    return ", ".join(f"{one['num_flips']} x {one['label']} -> {next(iter(one['now']))}" for one in flipped)
