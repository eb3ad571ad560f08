"""The named load profiles, and the sample of images to send."""

import random
from dataclasses import dataclass
from pathlib import Path

from fruitstand.contract import IMAGE_SUFFIXES
from fruitstand.errors import UsageError
from fruitstand_client.command.sources import find_images

MAX_IMAGES = 2_000
REQUEST_BATCHES = (1, 2, 4, 8, 16, 32, 64)
"""Allowed numbers of images in one request."""
CLOSED, OPEN = "closed", "open"
RAMP_USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
BREAK_SHARES = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.3)
PROFILES = ("ramp", "break", "steady", "spike", "soak")
STREAM_REQUESTS_PER_S = 2.0
"""Request rate of one user in an open loop. Locust spreads users over its workers, which spreads the rate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A constant load for some time."""

    load: float
    """Users in a closed loop; images/s in an open loop."""
    seconds: float

    def num_users(self, loop: str, request_batch: float) -> int:
        """Number of Locust users that generate this load."""
        if loop == CLOSED:
            return round(self.load)
        return max(1, round(self.load / request_batch / STREAM_REQUESTS_PER_S))


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """A sequence of stages.

    In a closed loop a user sends its next request when the last one is answered. In an open loop requests
    arrive at a constant rate whether the server keeps up or not, as in production.
    """

    name: str
    loop: str
    stages: tuple[Stage, ...]


def named_profile(name: str, *, stage_s: float, peak: float | None = None) -> Profile:
    """Build a profile by name.

    Args:
        name: one of `PROFILES`.
        stage_s: length of one stage of a ramp, seconds; stages of the other profiles are multiples of it.
        peak: images/s that the server can handle; the loads of open loops are shares of it.

    Raises:
        UsageError: an unknown name, a missing peak, or a number outside the allowed range.
    """
    if name not in PROFILES:
        raise UsageError(f"profile: got {name!r}, allowed {', '.join(PROFILES)}")
    if stage_s < 3:
        raise UsageError(
            f"stage-s: got {stage_s:g}, allowed >= 3: the first second of a stage does not count"
        )
    if name == "ramp":
        return _profile(name, CLOSED, [(users, stage_s) for users in RAMP_USERS])
    if peak is None:
        raise UsageError(
            f"profile {name} is a share of the server's peak throughput: give --peak in images/s, or the"
            " result file of --profile ramp"
        )
    if not peak > 0:
        raise UsageError(f"peak: got {peak:g}, allowed > 0 images/s")
    stages = {
        "break": [(share * peak, stage_s) for share in BREAK_SHARES],
        "steady": [(0.7 * peak, 4 * stage_s)],
        "spike": [(0.5 * peak, 2 * stage_s), (1.5 * peak, stage_s), (0.5 * peak, 3 * stage_s)],
        "soak": [(0.6 * peak, 120 * stage_s)],
    }
    return _profile(name, OPEN, stages[name])


def _profile(name: str, loop: str, stages: list[tuple[float, float]]) -> Profile:
    return Profile(
        name=name, loop=loop, stages=tuple(Stage(load=load, seconds=seconds) for load, seconds in stages)
    )


def read_sample(folder: Path, maximum: int = MAX_IMAGES) -> tuple[bytes, ...]:
    """Read a random sample of a folder's images, with a fixed seed; sub-folders are searched too.

    Raises:
        UsageError: no such folder, or no image in it.
    """
    found = [Path(str(path)) for path in find_images([str(folder)])]
    paths = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]  # none that needs conversion
    chosen = random.Random(0).sample(paths, min(maximum, len(paths)))
    return tuple(path.read_bytes() for path in chosen)
