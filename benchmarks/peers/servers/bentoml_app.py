"""BentoML with adaptive batching; Pydantic's validator checks each request before it joins a batch."""

import base64
import functools
from typing import Annotated

import bentoml
from classifier import MAX_BATCH_SIZE, Classifier, Decoder, peer_settings
from pydantic import AfterValidator

SETTINGS = peer_settings()


@functools.cache
def _decoder() -> Decoder:
    return Decoder()


def check(image: str) -> str:
    """Decode it once where bad images count: a validator's error is a 400 for this request alone."""
    if SETTINGS["decodes_first"]:
        _decoder().decode(base64.b64decode(image))
    return image


@bentoml.service(
    workers=SETTINGS["workers"],
    traffic={"timeout": SETTINGS["timeout_s"], "max_concurrency": SETTINGS["queue"]},
)
class Fruit:
    """Takes images as base64 in JSON, because a batchable endpoint takes lists."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=10_000)
    def classify(self, images: list[Annotated[str, AfterValidator(check)]]) -> list[str]:
        """Classify a batch of encoded images."""
        return self.classifier.classify([base64.b64decode(image) for image in images])
