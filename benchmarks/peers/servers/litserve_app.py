"""LitServe with batching, one worker."""

import os

import litserve
from classifier import MAX_BATCH_SIZE, Classifier


class Api(litserve.LitAPI):
    """Takes an image as a file upload, as in LitServe's documentation."""

    def setup(self, device):
        """Runs once per worker."""
        self.classifier = Classifier()

    def decode_request(self, request):
        """Read the image of one request."""
        return request["image"].file.read()

    def batch(self, inputs):
        """Batch encoded images as a list."""
        return list(inputs)

    def predict(self, batch):
        """Classify a batch of encoded images."""
        return self.classifier.classify(batch)

    def unbatch(self, output):
        """Split the batch into one label per request."""
        return list(output)

    def encode_response(self, output):
        """Return the label as JSON."""
        return {"label": output}


if __name__ == "__main__":
    api = Api(max_batch_size=MAX_BATCH_SIZE, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(port=int(os.environ["PORT"]), generate_client_file=False, log_level="warning")
