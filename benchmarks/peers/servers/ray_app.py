"""Ray Serve with @serve.batch; SIGHUP reads the settings again and deploys in place."""

import os
import signal
import time

import ray
from classifier import MAX_BATCH_SIZE, BadImage, Classifier, peer_settings
from ray import serve
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse


@serve.deployment(ray_actor_options={"num_cpus": 1})
class Fruit:
    """Takes the image as the body."""

    def reconfigure(self, deployed: dict) -> None:
        """Load the model, at the start and whenever `user_config` changes."""
        self.classifier = Classifier()

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=0.002)
    async def classify(self, batch: list) -> list[str]:
        """Classify a batch of images."""
        return self.classifier.classify(batch)

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer one request."""
        try:
            image = await run_in_threadpool(self.classifier.received, await request.body())
        except BadImage as exc:
            return JSONResponse({"detail": str(exc)}, 400)
        return JSONResponse({"label": await self.classify(image)})


def _deploy(number: int) -> None:
    settings = peer_settings()
    limited = {"max_queued_requests": settings["queue"]} if settings["decodes_first"] else {}
    app = Fruit.options(
        num_replicas=settings["workers"],
        max_ongoing_requests=256 // settings["workers"],
        user_config={"number": number},
        **limited,
    )
    serve.run(app.bind())


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False, object_store_memory=128 * 2**20)
    http = {
        "host": "127.0.0.1",
        "port": int(os.environ["PORT"]),
        "request_timeout_s": peer_settings()["timeout_s"],
    }
    serve.start(http_options=http, proxy_location="HeadOnly")
    told: list[int] = []  # no sigwait: threads that Ray has started would get the signals instead
    for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(one, lambda number, _: told.append(number))
    number = 0
    _deploy(number)
    while (one := told.pop(0) if told else None) in (None, signal.SIGHUP):
        if one is None:
            time.sleep(0.1)
        else:
            number += 1
            _deploy(number)
    serve.shutdown()
    ray.shutdown()
