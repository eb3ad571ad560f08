"""BentoML with adaptive batching, one worker."""

import base64

import bentoml
from classifier import MAX_BATCH_SIZE, Classifier


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 1024})
class Fruit:
    """Takes images as base64 in JSON, because a batchable endpoint takes lists."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=10_000)
    def classify(self, images: list[str]) -> list[str]:
        """Classify a batch of encoded images."""
        return self.classifier.classify([base64.b64decode(image) for image in images])
