"""A named profile as a Locust shape: how many users there are at each moment."""

import time

from locust import LoadTestShape

from loadtests.generator.profiles import Profile


class ProfileShape(LoadTestShape):
    """Walks through a profile's stages and notes when each began and ended."""

    abstract = True  # else Locust would apply it to every run of a file that imports it

    def __init__(self, profile: Profile, request_batch: float, *, drain_s: float) -> None:
        """Prepare the walk.

        Args:
            profile: the stages.
            request_batch: mean number of images in one request.
            drain_s: time without users after the last stage. Locust's master ends half a second after its
                workers were told to, and never hears of the calls that were still under way.
        """
        super().__init__()
        self._profile, self._request_batch, self._drain_s = profile, request_batch, drain_s
        self.stages: list[dict[str, float]] = []
        """{load, start, end} of the stages so far, wall clock in seconds."""

    def reset_time(self) -> None:
        """A new run."""
        super().reset_time()
        self.stages = []

    def tick(self) -> tuple[int, float] | None:
        """What Locust asks every second."""
        left_s, now = self.get_run_time(), time.time()
        for number, stage in enumerate(self._profile.stages):
            if left_s < stage.seconds:
                if number == len(self.stages):
                    self._end_stage(now)
                    self.stages.append({"load": stage.load, "start": now})
                users = stage.num_users(self._profile.loop, self._request_batch)
                return users, max(users, 1)
            left_s -= stage.seconds
        self._end_stage(now)
        return (0, 1000) if left_s < self._drain_s else None

    def _end_stage(self, now: float) -> None:
        if self.stages:
            self.stages[-1].setdefault("end", now)
