"""MLServer with adaptive batching; with one worker its worker pool is off."""

import json
import os
import sys
from pathlib import Path

from classifier import MAX_BATCH_SIZE, BadImage, Classifier, peer_settings
from mlserver import MLModel
from mlserver.codecs import Base64Codec, StringCodec
from mlserver.errors import MLServerError
from mlserver.types import InferenceRequest, InferenceResponse


class Fruit(MLModel):
    """Takes images as base64 in the JSON of the V2 protocol."""

    async def load(self) -> bool:
        """Load the model."""
        self.classifier = Classifier()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Classify a batch of encoded images."""
        try:
            labels = self.classifier.classify(Base64Codec.decode_input(payload.inputs[0]))
        except BadImage as exc:
            raise MLServerError(str(exc)) from exc
        output = StringCodec.encode_output("label", labels)
        return InferenceResponse(model_name=self.name, outputs=[output])


if __name__ == "__main__":
    folder, port = Path(os.environ["SCRATCH"]), int(os.environ["PORT"])
    workers = peer_settings()["workers"]
    settings = {
        "http_port": port,
        "grpc_port": int(os.environ["PORT_2"]),
        "metrics_port": int(os.environ["PORT_3"]),
        "metrics_dir": str(folder / "metrics"),
        "host": "127.0.0.1",
        "parallel_workers": workers if workers > 1 else 0,
        "debug": False,
    }
    model = {
        "name": "fruit",
        "implementation": "mlserver_app.Fruit",
        "max_batch_size": MAX_BATCH_SIZE,
        "max_batch_time": 0.002,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    program = str(Path(sys.executable).with_name("mlserver"))
    os.execv(program, [program, "start", str(folder)])
