"""TorchServe's handler, which gets the batches that the server forms."""

from classifier import Classifier


class Handler:
    """Takes the image as the body."""

    def initialize(self, context):
        """Runs once per worker."""
        self.classifier = Classifier()

    def handle(self, data, context):
        """Classify a batch of requests."""
        images = [bytes(row.get("data") or row.get("body")) for row in data]
        return [{"label": label} for label in self.classifier.classify(images)]
