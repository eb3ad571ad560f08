"""TorchServe's handler: it hands over batches as the server forms them."""

from classifier import Classifier


class Handler:
    """The image is the body."""

    def initialize(self, context):
        """Once a worker."""
        self.classifier = Classifier()

    def handle(self, data, context):
        """A batch of requests."""
        images = [bytes(row.get("data") or row.get("body")) for row in data]
        return [{"label": label} for label in self.classifier.classify(images)]
