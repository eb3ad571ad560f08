"""Mosec: its Rust front end batches requests for one worker process."""

from classifier import MAX_BATCH_SIZE, Classifier
from mosec import Server, Worker


class Fruit(Worker):
    """Takes the image as the body."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    def deserialize(self, data: bytes) -> bytes:
        """Keep the encoded image; `forward` decodes the batch."""
        return data

    def forward(self, data: list[bytes]) -> list[dict[str, str]]:
        """Classify a batch of encoded images."""
        return [{"label": label} for label in self.classifier.classify(data)]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Fruit, num=1, max_batch_size=MAX_BATCH_SIZE, max_wait_time=2, timeout=60)
    server.run()
