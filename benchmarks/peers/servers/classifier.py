"""The classifier that every peer serves: Pillow and ONNX Runtime, with our model files and engines.

Runs in a peer's environment, with this checkout on its path for the preprocessing contract.
"""

import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
from PIL import Image

from fruitstand.contract import PIXELS, PROBABILITIES, Preprocessing

PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "openvino": [("OpenVINOExecutionProvider", {"device_type": "CPU"})],
}
MAX_BATCH_SIZE = 32


class Classifier:
    """One session. Several threads decode a batch, because Pillow releases the GIL."""

    def __init__(self, threads: int | None = None) -> None:
        settings = json.loads(os.environ["FRUITSTAND_PEER"])
        threads = threads or settings["num_threads"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            settings["model"], options, providers=PROVIDERS[settings["engine"]]
        )
        self._labels = settings["labels"]
        self._uses_draft = settings.get("uses_draft", False)
        self._preprocessing = Preprocessing.from_dict(settings["preprocessing"])
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def decode(self, encoded: bytes) -> np.ndarray:
        """Decode an image to (H, W, 3) uint8."""
        image = Image.open(io.BytesIO(encoded))
        size = self._preprocessing.resized_size(*image.size)
        if self._uses_draft:
            image.draft("RGB", size)
        image = image.convert("RGB")
        if size != image.size:
            image = image.resize(size, Image.Resampling[self._preprocessing.interpolation.upper()])
        height, width = self._preprocessing.input_size
        if size != (width, height):
            left, top = (size[0] - width + 1) // 2, (size[1] - height + 1) // 2
            image = image.crop((left, top, left + width, top + height))
        return np.asarray(image)

    def classify(self, batch: Sequence[bytes]) -> list[str]:
        """Classify encoded images; returns one label per image."""
        decode = map if self._pool is None or len(batch) == 1 else self._pool.map
        pixels = np.stack(list(decode(self.decode, batch)))
        (probabilities,) = self._session.run([PROBABILITIES], {PIXELS: pixels})
        return [self._labels[index] for index in probabilities.argmax(axis=1)]
