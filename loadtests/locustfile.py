"""Locust users that send encoded images to a served model over gRPC, through the client of this project.

    locust -f loadtests/locustfile.py --host 127.0.0.1:8001 --images data/fruits/images/Test

opens the web page; `--headless --users 64 --spawn-rate 64 --run-time 30s` runs without it. Each user is a
closed loop: it sends its next request when the last one is answered.
"""

import random
import sys
import time
from argparse import Namespace
from pathlib import Path

# gRPC's C core knows nothing of gevent: without this, the first call of one user stops all others. It has
# to come before any channel is made.
import grpc.experimental.gevent

grpc.experimental.gevent.init_gevent()

from locust import User, events, task  # noqa: E402
from locust.argument_parser import LocustArgumentParser  # noqa: E402
from locust.env import Environment  # noqa: E402

from fruitstand.errors import FruitstandError, UsageError  # noqa: E402
from fruitstand_client import Client  # noqa: E402
from fruitstand_client.sources import find_images  # noqa: E402

MAX_IMAGES = 2_000
"""Read into memory before the first request, so that no disk is measured."""


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Our options beside Locust's own."""
    parser.add_argument("--images", default="data", help="Folder with the images to send.")
    parser.add_argument("--request-batch", type=int, default=1, help="Images in one request, 1 to 64.")


@events.test_start.add_listener
def load_images(environment: Environment, **_: object) -> None:
    """Read the images once; every user of this process draws from them."""
    options: Namespace = environment.parsed_options
    try:
        paths = list(find_images([options.images]))
    except UsageError as exc:  # Locust would log it and start all the same
        print(f"locust: error: {exc}", file=sys.stderr)
        environment.process_exit_code = 2
        environment.runner.quit()
        return
    chosen = random.Random(0).sample(paths, min(MAX_IMAGES, len(paths)))
    ImageUser.images = [Path(str(path)).read_bytes() for path in chosen]
    # One connection a process: HTTP/2 carries all users' calls side by side.
    ImageUser.client = Client(environment.host, batch_size=options.request_batch)


@events.test_stop.add_listener
def close_client(**_: object) -> None:
    """End the connection with the test."""
    if ImageUser.client is not None:
        ImageUser.client.close()


class ImageUser(User):
    """Sends one request after the other."""

    images: list[bytes] = []  # noqa: RUF012 - filled once a process, shared on purpose
    client: Client | None = None

    @task
    def classify(self) -> None:
        """One request of `--request-batch` images."""
        size = self.environment.parsed_options.request_batch
        batch = random.choices(self.images, k=size)
        started = time.perf_counter()
        error: FruitstandError | None = None
        try:
            self.client.classify_batch(batch)
        except FruitstandError as exc:
            error = exc
        self.environment.events.request.fire(
            request_type="gRPC",
            name=f"classify, batch {size}",
            response_time=(time.perf_counter() - started) * 1e3,
            response_length=0,
            exception=error,
            context={},
        )
