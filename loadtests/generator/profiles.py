"""What is sent, and how much for how long: the images of a folder, and the named load profiles."""

import random
from dataclasses import dataclass
from pathlib import Path

from fruitstand.contract import IMAGE_SUFFIXES
from fruitstand.errors import UsageError
from fruitstand_client.command.sources import find_images

MAX_IMAGES = 2_000
REQUEST_BATCHES = (1, 2, 4, 8, 16, 32, 64)
"""Images in a request that a load may have."""
CLOSED, OPEN = "closed", "open"
RAMP_USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
BREAK_SHARES = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.3)
PROFILES = ("ramp", "break", "steady", "spike", "soak")
STREAM_REQUESTS_PER_S = 2.0
"""Of one user of an open loop: Locust spreads users over its workers, and with them the rate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A constant load."""

    load: float
    """Users of a closed loop; images/s of an open one."""
    seconds: float

    def num_users(self, loop: str, request_batch: float) -> int:
        """Locust users that make this load."""
        if loop == CLOSED:
            return round(self.load)
        return max(1, round(self.load / request_batch / STREAM_REQUESTS_PER_S))


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Stages of one loop.

    In a closed loop a user sends its next request when the last one is answered. In an open loop requests
    come at a constant rate whether the server keeps up or not, as they do from the world.
    """

    name: str
    loop: str
    stages: tuple[Stage, ...]


def named_profile(name: str, *, stage_s: float, peak: float | None = None) -> Profile:
    """A profile by its name.

    Args:
        name: one of `PROFILES`.
        stage_s: length of one stage of a ramp, seconds; the others are multiples of it.
        peak: images/s that the server can take; the open loops are shares of it.

    Raises:
        UsageError: an unknown name, no peak where one is needed, or a number outside what is allowed.
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
            f"profile {name} is a share of what the server can take: give --peak in images/s, or the result"
            " file of --profile ramp"
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
    """Up to `maximum` files of a folder and the folders in it, drawn at random but always the same ones.

    Raises:
        UsageError: no such folder, or no image in it.
    """
    found = [Path(str(path)) for path in find_images([str(folder)])]
    paths = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]  # as they are, none converted
    chosen = random.Random(0).sample(paths, min(maximum, len(paths)))
    return tuple(path.read_bytes() for path in chosen)
