"""Refuse images that are not whole. Rendered by `fruitstand export` from the contract: edit export/templates.

NVIDIA's dali backend fails every request of a batch that holds one image it cannot decode, and a header
that its parser cannot read ends the server. This step answers for such images, and passes the others on. It
checks as the embedded server does: the folder `fruitstand` beside this file holds copies of its modules.
"""

import numpy as np
import triton_python_backend_utils as pb_utils
from nvidia.dali import fn, pipeline_def, types

from fruitstand.contract import Preprocessing
from fruitstand.errors import ImageRejected
from fruitstand.images.structure import inspect_image

PREPROCESSING = $preprocessing
LIMITS = Preprocessing.from_dict(PREPROCESSING)


class TritonPythonModel:
    """One instance of the guard."""

    def initialize(self, args: dict[str, str]) -> None:
        self._build()

    def execute(self, requests: list) -> list:
        return [self._answer(request) for request in requests]

    def _answer(self, request) -> "pb_utils.InferenceResponse":
        encoded = pb_utils.get_input_tensor_by_name(request, "$encoded")
        images, pictures = encoded.as_numpy(), []
        for position, image in enumerate(images):
            try:
                pictures.append(self._picture(image))
            except ImageRejected as exc:
                where = f"image {position + 1} of {len(images)}: " if len(images) > 1 else ""
                # The id is the caller's own text: a quoted and shortened one forges no line.
                pb_utils.Logger.log_info(f"request {request.request_id()[:64]!a}: {where}{exc}")
                error = pb_utils.TritonError(f"{where}{exc}", pb_utils.TritonError.INVALID_ARG)
                return pb_utils.InferenceResponse(error=error)
        if all(len(one) == images.shape[1] and np.may_share_memory(one, images) for one in pictures):
            return pb_utils.InferenceResponse([encoded])  # as they came: nothing is copied
        rows = np.zeros((len(pictures), max(map(len, pictures))), np.uint8)
        for row, picture in zip(rows, pictures, strict=True):
            row[: len(picture)] = picture
        return pb_utils.InferenceResponse([pb_utils.Tensor("$encoded", rows)])

    def _picture(self, image: np.ndarray) -> np.ndarray:
        """What the decoder may see of a file; ImageRejected where that is nothing."""
        inspected = inspect_image(image.data, LIMITS)
        picture = np.frombuffer(inspected.content, np.uint8)
        if inspected.header.format == "JPEG":  # one that is whole hardly ever fails
            return picture
        try:
            self._pipeline.feed_input("$encoded", [picture])
            self._pipeline.run()
        except Exception as exc:  # DALI raises RuntimeError, MemoryError and whatever its decoders raise
            self._build()
            raise ImageRejected("damaged or truncated: the image cannot be decoded to its end") from exc
        return picture

    def _build(self) -> None:
        self._pipeline = _decode_one()
        self._pipeline.build()


@pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
def _decode_one():
    encoded = fn.external_source(device="cpu", name="$encoded", dtype=types.UINT8, ndim=1)
    return fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
