"""The classifier that every peer serves: Pillow and ONNX Runtime, with our model files and engines.

Runs in a peer's environment, with this checkout on its path for the preprocessing contract.
`benchmarks.peers` measures speed and `benchmarks.faults` breaks things; they set `peer_settings` differently.
"""

import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from fruitstand.contract import PIXELS, PROBABILITIES, Preprocessing

PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "openvino": [("OpenVINOExecutionProvider", {"device_type": "CPU"})],
}
MAX_BATCH_SIZE = 32
DEFAULTS = {"workers": 1, "queue": 1024, "timeout_s": 60, "decodes_first": False, "journal": None}


class BadImage(ValueError):
    """Pillow cannot decode the image; the message contains nothing about this machine."""


def peer_settings() -> dict[str, Any]:
    """The benchmark's settings, read again at each call: a swap of the model changes the file.

    `workers`, `queue` (requests that may wait) and `timeout_s` set the peer's own options. With
    `decodes_first` each request is decoded before it joins a batch, so that a bad image fails alone if the
    peer has a step for this. `journal` is a folder that records the processes with a model and the number of
    images computed.
    """
    return {**DEFAULTS, **json.loads(Path(os.environ["FRUITSTAND_PEER"]).read_text())}


class Decoder:
    """Decodes images to the model's pixels."""

    def __init__(self) -> None:
        settings = peer_settings()
        self._uses_draft = settings.get("uses_draft", False)
        self._preprocessing = Preprocessing.from_dict(settings["preprocessing"])

    def decode(self, encoded: bytes) -> np.ndarray:
        """Decode an image to (H, W, 3) uint8.

        Raises:
            BadImage: Pillow failed, with any of its many kinds of errors.
        """
        try:
            return self._decode(encoded)
        except Exception as exc:
            raise BadImage("not an image that can be decoded") from exc

    def _decode(self, encoded: bytes) -> np.ndarray:
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


class Classifier(Decoder):
    """One session. Several threads decode a batch, because Pillow releases the GIL."""

    def __init__(self, threads: int | None = None) -> None:
        super().__init__()
        settings = peer_settings()
        threads = threads or settings["num_threads"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            settings["model"], options, providers=PROVIDERS[settings["engine"]]
        )
        self._labels = settings["labels"]
        self._decodes_first = settings["decodes_first"]
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._computed = None
        if settings["journal"] is not None:
            Path(settings["journal"], f"{os.getpid()}.worker").touch()
            path = Path(settings["journal"], "computed")
            self._computed = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def received(self, encoded: bytes) -> bytes | np.ndarray:
        """The image as it joins a batch: encoded or decoded.

        Raises:
            BadImage: it is decoded here and is bad.
        """
        return self.decode(encoded) if self._decodes_first else encoded

    def classify(self, batch: Sequence[bytes | np.ndarray]) -> list[str]:
        """Classify images, encoded or decoded; returns one label per image.

        Raises:
            BadImage: one of the encoded ones is bad.
        """
        decode = map if self._pool is None or len(batch) == 1 else self._pool.map
        pixels = np.stack(list(decode(self._pixels, batch)))
        (probabilities,) = self._session.run([PROBABILITIES], {PIXELS: pixels})
        if self._computed is not None:
            os.write(self._computed, b"." * len(batch))
        return [self._labels[index] for index in probabilities.argmax(axis=1)]

    def _pixels(self, image: bytes | np.ndarray) -> np.ndarray:
        return image if isinstance(image, np.ndarray) else self.decode(image)
