"""Mosec: its Rust front end batches requests for worker processes.

With `decodes_first` a separate stage decodes each request, as in Mosec's ResNet example.
"""

from classifier import MAX_BATCH_SIZE, BadImage, Classifier, Decoder, peer_settings
from mosec import Server, ValidationError, Worker


class Decode(Worker):
    """Takes the image as the body."""

    def __init__(self) -> None:
        self.decoder = Decoder()

    def deserialize(self, data: bytes) -> bytes:
        """Keep the encoded image."""
        return data

    def forward(self, data: bytes) -> object:
        """Decode one image."""
        try:
            return self.decoder.decode(data)
        except BadImage as exc:
            raise ValidationError(str(exc)) from exc


class Fruit(Worker):
    """Takes the image as the body, or decoded by the stage before."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    def deserialize(self, data: bytes) -> bytes:
        """Keep the encoded image; `forward` decodes the batch."""
        return data

    def forward(self, data: list) -> list[dict[str, str]]:
        """Classify a batch of images."""
        return [{"label": label} for label in self.classifier.classify(data)]


if __name__ == "__main__":
    settings = peer_settings()
    server = Server()
    if settings["decodes_first"]:
        server.append_worker(Decode, num=settings["workers"], timeout=settings["timeout_s"])
    server.append_worker(
        Fruit,
        num=settings["workers"],
        max_batch_size=MAX_BATCH_SIZE,
        max_wait_time=2,
        timeout=settings["timeout_s"],
    )
    server.run()
