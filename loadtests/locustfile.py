"""Locust users that send encoded images to a served model over gRPC, through the client of this project.

    locust -f loadtests/locustfile.py --host 127.0.0.1:8001 --images data/fruits/images/Test

opens the web page; `--headless --users 64 --spawn-rate 64 --run-time 30s` runs without it, `--master` and
`--worker` on several cores. Each user is a closed loop: it sends its next request when the last one is
answered. `--load NAME` takes users and time from a profile instead, some of which are open loops; what
`fruitstand loadtest` runs. `--tags batch-8 batch-32` chooses how many images a request has; default batch-1.
"""

import random
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

# gRPC's C core knows nothing of gevent: without this, the first call of one user stops all others. It has
# to come before any channel is made.
import grpc.experimental.gevent

grpc.experimental.gevent.init_gevent()

import gevent  # noqa: E402
from gevent.pool import Group  # noqa: E402
from locust import LoadTestShape, User, events, tag, task  # noqa: E402
from locust.argument_parser import LocustArgumentParser  # noqa: E402
from locust.env import Environment  # noqa: E402
from locust.runners import WORKER_REPORT_INTERVAL, WorkerRunner  # noqa: E402

from fruitstand.artefacts import write_json  # noqa: E402
from fruitstand.errors import FruitstandError, UsageError  # noqa: E402
from fruitstand_client import Client  # noqa: E402
from loadtests.generator.profiles import (  # noqa: E402
    OPEN,
    PROFILES,
    REQUEST_BATCHES,
    STREAM_REQUESTS_PER_S,
    Profile,
    named_profile,
    read_sample,
)
from loadtests.generator.recording import (  # noqa: E402
    MISSED,
    REJECTED,
    Recording,
    outcome_of,
    watch,
)


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


class _Process:
    """What the users of this process share."""

    images: tuple[bytes, ...] = ()
    client: Client | None = None
    loop = "closed"
    unsent = Recording()
    """What the master has not yet been told."""
    recording = Recording()
    """Of all processes, in the one that reports."""


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Our options beside Locust's own."""
    parser.add_argument("--images", default="data", help="Folder with the images to send.")
    parser.add_argument("--load", default="", help=f"Profile of the load: {', '.join(PROFILES)}.")
    parser.add_argument("--stage-s", type=float, default=10.0, help="Length of one stage, seconds.")
    parser.add_argument("--peak", type=float, default=None, help="Images/s the server can take.")
    parser.add_argument("--deadline-s", type=float, default=5.0, help="For each request, seconds.")
    parser.add_argument("--recording", default="", help="JSON file for what was seen, second by second.")


@events.init.add_listener
def prepare(environment: Environment, **_: object) -> None:
    """Choose the shape and the batch sizes."""
    options: Namespace = environment.parsed_options
    options.tags = options.tags or ["batch-1"]
    if options.load:
        try:
            profile = named_profile(options.load, stage_s=options.stage_s, peak=options.peak)
        except UsageError as exc:
            sys.exit(_refuse(exc))
        _Process.loop = profile.loop
        if not isinstance(environment.runner, WorkerRunner):
            sizes = [int(name.removeprefix("batch-")) for name in options.tags]
            drain_s = options.deadline_s + 2 * WORKER_REPORT_INTERVAL if options.master else 0.0
            environment.shape_class = ProfileShape(profile, sum(sizes) / len(sizes), drain_s=drain_s)
    if not isinstance(environment.runner, WorkerRunner):
        _Process.unsent = _Process.recording  # it tells nobody; what a master adds comes from its workers


@events.test_start.add_listener
def start(environment: Environment, **_: object) -> None:
    """Read the images once; every user of this process draws from them."""
    options: Namespace = environment.parsed_options
    try:
        _Process.images = read_sample(Path(options.images))
        # One connection a process: HTTP/2 carries all users' calls side by side.
        _Process.client = Client(environment.host, batch_size=64, deadline_s=options.deadline_s)
    except UsageError as exc:  # Locust would log it and start all the same
        environment.process_exit_code = _refuse(exc)
        environment.runner.quit()
        return
    if not hasattr(environment, "watch"):
        environment.watch = gevent.spawn(watch, _Process.unsent)


@events.test_stop.add_listener
def close_client(**_: object) -> None:
    """End the connection with the test."""
    if _Process.client is not None:
        _Process.client.close()


@events.report_to_master.add_listener
def report(data: dict[str, Any], **_: object) -> None:
    """In a worker: hand over what is new."""
    data["recording"] = _Process.unsent.to_dict()
    _Process.unsent.clear()


@events.worker_report.add_listener
def collect(data: dict[str, Any], **_: object) -> None:
    """In the master."""
    _Process.recording.add(Recording.from_dict(data["recording"]))


@events.quitting.add_listener
def write_recording(environment: Environment, **_: object) -> None:
    """The stages with what was seen in them, of all processes."""
    if isinstance(environment.runner, WorkerRunner):
        return
    total = _Process.recording.total()
    counts = f"{total.outcomes[REJECTED]} rejects, {total.outcomes[MISSED]} deadline misses"
    print(f"{total.num_images} images, {counts}", file=sys.stderr)
    if path := environment.parsed_options.recording:
        stages = getattr(environment.shape_class, "stages", [])
        write_json(Path(path), {"stages": stages, **_Process.recording.to_dict()})


def _refuse(exc: FruitstandError) -> int:
    print(f"locust: error: {exc}", file=sys.stderr)
    return exc.exit_code


def _sender(size: int) -> Callable[["ImageUser"], None]:
    def classify(self: "ImageUser") -> None:
        self.send(size)

    classify.__name__ = f"classify_{size}"
    return tag(f"batch-{size}")(task(classify))


class ImageUser(User):
    """Sends images: one request after the other, or one every half a second whatever comes back."""

    tasks = [_sender(size) for size in REQUEST_BATCHES]  # noqa: RUF012 - as Locust documents it

    def on_start(self) -> None:
        """The streams of an open loop start at random moments of their first period."""
        self._due = time.perf_counter() + random.random() / STREAM_REQUESTS_PER_S
        self._calls = Group()

    def on_stop(self) -> None:
        """Every call that was sent is waited for, and counted."""
        self._calls.join()

    def send(self, size: int) -> None:
        """One request of `size` images, or of an open loop the next one that is due."""
        if _Process.loop != OPEN:
            self._call(size, time.perf_counter())
            return
        gevent.sleep(max(0.0, self._due - time.perf_counter()))
        # From when it was due, not from when it was sent: a generator that stalls with the server would not
        # see the waiting of those who come meanwhile.
        self._calls.spawn(self._call, size, self._due)
        self._due += 1 / STREAM_REQUESTS_PER_S

    def _call(self, size: int, started: float) -> None:
        assert _Process.client is not None
        batch = random.choices(_Process.images, k=size)
        error: FruitstandError | None = None
        try:
            _Process.client.classify_batch(batch)
        except FruitstandError as exc:
            error = exc
        latency_ms = (time.perf_counter() - started) * 1e3
        _Process.unsent.record(outcome_of(error), request_batch=size, latency_ms=latency_ms)
        self.environment.events.request.fire(
            request_type="gRPC",
            name=f"classify, batch {size}",
            response_time=latency_ms,
            response_length=0,
            exception=error,
            context={},
        )
