"""TorchServe's handler, with a status per request of the batch."""

from classifier import BadImage, Classifier


class Handler:
    """Takes the image as the body."""

    def initialize(self, context):
        """Runs once per worker."""
        self.classifier = Classifier()

    def handle(self, data, context):
        """Classify a batch of requests."""
        answers, good = [{"detail": "not an image that can be decoded"}] * len(data), {}
        for index, row in enumerate(data):
            try:
                good[index] = self.classifier.received(bytes(row.get("data") or row.get("body") or b""))
            except BadImage as exc:
                context.set_response_status(400, str(exc), index)
        if good:
            for index, label in zip(good, self.classifier.classify(list(good.values())), strict=True):
                answers[index] = {"label": label}
        return answers
