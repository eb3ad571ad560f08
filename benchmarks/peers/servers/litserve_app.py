"""LitServe with batching, one worker."""

import os

import litserve
from classifier import MAX_BATCH_SIZE, Classifier


class Api(litserve.LitAPI):
    """An image as a file upload, as LitServe's documentation sends them."""

    def setup(self, device):
        """Once a worker."""
        self.classifier = Classifier()

    def decode_request(self, request):
        """One request."""
        return request["image"].file.read()

    def batch(self, inputs):
        """Encoded images stay as they are."""
        return list(inputs)

    def predict(self, batch):
        """A batch of encoded images."""
        return self.classifier.classify(batch)

    def unbatch(self, output):
        """One label a request."""
        return list(output)

    def encode_response(self, output):
        """JSON."""
        return {"label": output}


if __name__ == "__main__":
    api = Api(max_batch_size=MAX_BATCH_SIZE, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60)
    server.run(port=int(os.environ["PORT"]), generate_client_file=False, log_level="warning")
