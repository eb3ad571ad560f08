"""Ray Serve with @serve.batch, one replica."""

import os
import signal

import ray
from classifier import MAX_BATCH_SIZE, Classifier
from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Fruit:
    """Takes the image as the body."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=0.002)
    async def classify(self, batch: list[bytes]) -> list[str]:
        """Classify a batch of encoded images."""
        return self.classifier.classify(batch)

    async def __call__(self, request: Request) -> dict[str, str]:
        """Answer one request."""
        return {"label": await self.classify(await request.body())}


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False, object_store_memory=128 * 2**20)
    http = {"host": "127.0.0.1", "port": int(os.environ["PORT"])}
    serve.start(http_options=http, proxy_location="HeadOnly")
    serve.run(Fruit.bind())
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
