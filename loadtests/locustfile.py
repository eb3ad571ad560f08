"""Locust users that send encoded images to a model server over gRPC, with this project's client.

    locust -f loadtests/locustfile.py --host 127.0.0.1:8001 --images data/fruits/images/Test

starts the web page. `--headless --users 64 --spawn-rate 64 --run-time 30s` runs without it; `--master` and
`--worker` use several cores. Each user is a closed loop: it sends its next request when the last one is
answered. `--load NAME`, which `fruitstand loadtest` uses, takes users and time from a profile; some profiles
are open loops. `--tags batch-8 batch-32` sets how many images a request has; the default is batch-1.
"""

import random
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Without this, a gRPC call of one user blocks all gevent greenlets. It must run before any channel is
# created.
import grpc.experimental.gevent

grpc.experimental.gevent.init_gevent()

import gevent  # noqa: E402
from gevent.pool import Group  # noqa: E402
from locust import LoadTestShape, User, events, tag, task  # noqa: E402
from locust.argument_parser import LocustArgumentParser  # noqa: E402
from locust.env import Environment  # noqa: E402
from locust.runners import WORKER_REPORT_INTERVAL, WorkerRunner  # noqa: E402

from fruitstand.artefacts import write_json  # noqa: E402
from fruitstand.contract import FRUIT_CLASSIFIER  # noqa: E402
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
    """Runs a profile's stages and records when each began and ended."""

    abstract = True  # otherwise Locust applies the class to every run of a file that imports it

    def __init__(self, profile: Profile, request_batch: float, *, drain_s: float) -> None:
        """Prepare the run.

        Args:
            profile: the stages.
            request_batch: mean number of images in one request.
            drain_s: time without users after the last stage. Locust's master exits half a second after it
                stops the workers, so calls that are still in flight then would not be counted.
        """
        super().__init__()
        self._profile, self._request_batch, self._drain_s = profile, request_batch, drain_s
        self.stages: list[dict[str, float]] = []
        """{load, start, end} of the stages so far; wall-clock times in seconds."""

    def reset_time(self) -> None:
        """Start a new run."""
        super().reset_time()
        self.stages = []

    def tick(self) -> tuple[int, float] | None:
        """Return users and spawn rate, or None at the end; Locust calls this once a second."""
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
    """State that the users of this process share."""

    images: tuple[bytes, ...] = ()
    client: Client | None = None
    loop = "closed"
    unsent = Recording()
    """Calls not yet reported to the master."""
    recording = Recording()
    """Calls of all processes, in the process that reports."""


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Add our options to Locust's."""
    parser.add_argument("--model", default=FRUIT_CLASSIFIER, help="Name of the classifier.")
    parser.add_argument("--images", default="data", help="Folder with the images to send.")
    parser.add_argument("--load", default="", help=f"Load profile: {', '.join(PROFILES)}.")
    parser.add_argument("--stage-s", type=float, default=10.0, help="Length of one stage, seconds.")
    parser.add_argument("--peak", type=float, default=None, help="Peak throughput of the server, images/s.")
    parser.add_argument("--deadline-s", type=float, default=5.0, help="Deadline of each request, seconds.")
    parser.add_argument("--recording", default="", help="JSON file for the recording of each second.")


@events.init.add_listener
def prepare(environment: Environment, **_: object) -> None:
    """Set the load shape and the request batches."""
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
        # A single process has no master to report to. A master sends nothing itself.
        _Process.unsent = _Process.recording


@events.test_start.add_listener
def start(environment: Environment, **_: object) -> None:
    """Read the images and connect, once for all users of this process."""
    options: Namespace = environment.parsed_options
    try:
        _Process.images = read_sample(Path(options.images))
        # One connection for all users: HTTP/2 multiplexes their calls.
        _Process.client = Client(
            environment.host, model=options.model, batch_size=64, deadline_s=options.deadline_s
        )
    except UsageError as exc:  # Locust would log the error and start anyway
        environment.process_exit_code = _refuse(exc)
        environment.runner.quit()
        return
    if not hasattr(environment, "watch"):
        environment.watch = gevent.spawn(watch, _Process.unsent)


@events.test_stop.add_listener
def close_client(**_: object) -> None:
    """Close the connection when the test stops."""
    if _Process.client is not None:
        _Process.client.close()


@events.report_to_master.add_listener
def report(data: dict[str, Any], **_: object) -> None:
    """In a worker: send new calls to the master."""
    data["recording"] = _Process.unsent.to_dict()
    _Process.unsent.clear()


@events.worker_report.add_listener
def collect(data: dict[str, Any], **_: object) -> None:
    """In the master: add a worker's calls."""
    _Process.recording.add(Recording.from_dict(data["recording"]))


@events.quitting.add_listener
def write_recording(environment: Environment, **_: object) -> None:
    """Write stages and calls of all processes to the `--recording` file."""
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
    """Sends requests: one after the other in a closed loop, or one every half second in an open loop."""

    tasks = [_sender(size) for size in REQUEST_BATCHES]  # noqa: RUF012 - as Locust documents it

    def on_start(self) -> None:
        """Start an open loop at a random time within its first period."""
        self._due = time.perf_counter() + random.random() / STREAM_REQUESTS_PER_S
        self._calls = Group()

    def on_stop(self) -> None:
        """Wait for all calls in flight, so that they are counted."""
        self._calls.join()

    def send(self, size: int) -> None:
        """Send one request of `size` images; in an open loop, wait until it is due."""
        if _Process.loop != OPEN:
            self._call(size, time.perf_counter())
            return
        gevent.sleep(max(0.0, self._due - time.perf_counter()))
        # Latency counts from the due time. Counting from the send time would hide the wait when the generator
        # stalls together with the server (coordinated omission).
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
