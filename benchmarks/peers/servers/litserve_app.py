"""LitServe with batching."""

import os

import litserve
from classifier import MAX_BATCH_SIZE, BadImage, Classifier, peer_settings
from fastapi import HTTPException


class Api(litserve.LitAPI):
    """Takes an image as a file upload, as in LitServe's documentation."""

    def setup(self, device):
        """Runs once per worker."""
        self.classifier = Classifier()

    def decode_request(self, request):
        """Read the image of one request."""
        try:
            return self.classifier.received(request["image"].file.read())
        except BadImage as exc:
            raise HTTPException(400, str(exc)) from exc

    def batch(self, inputs):
        """Batch images as a list."""
        return list(inputs)

    def predict(self, batch):
        """Classify a batch of images."""
        return self.classifier.classify(batch)

    def unbatch(self, output):
        """Split the batch into one label per request."""
        return list(output)

    def encode_response(self, output):
        """Return the label as JSON."""
        return {"label": output}


if __name__ == "__main__":
    settings = peer_settings()
    api = Api(max_batch_size=MAX_BATCH_SIZE, batch_timeout=0.002)
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=settings["workers"],
        timeout=settings["timeout_s"],
        max_payload_size=settings.get("max_body_bytes"),
        restart_workers=True,
    )
    server.run(port=int(os.environ["PORT"]), generate_client_file=False, log_level="warning")
