"""Decode and resize for serving. Rendered by `fruitstand export` from the contract: edit export/templates.

NVIDIA's dali backend runs this file with its own Python and serialises the pipeline; the embedded backend
imports it. The CPU decodes unless FRUITSTAND_DECODE_DEVICE=gpu.
"""

import os
from typing import Any

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.triton import autoserialize

GPU = os.environ.get("FRUITSTAND_DECODE_DEVICE") == "gpu"
PREPROCESSING: dict[str, Any] = {
    "input_size": [100, 100],
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "crop_mode": "center",
    "max_encoded_bytes": 8388608,
    "max_pixels": 50000000,
    "reduced_decode": 3.0,
}


def decode_pixels(encoded: Any, preprocessing: dict[str, Any], *, on_gpu: bool) -> Any:
    """Add the operators to the pipeline that is being defined.

    Args:
        encoded: DALI's node of encoded images.
        preprocessing: the contract, as `Preprocessing.to_dict` gives it.
        on_gpu: decode on the GPU.

    Returns:
        DALI's node of (H, W, 3) uint8 pixels, RGB.
    """
    from nvidia.dali import fn, types

    interpolations = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
    height, width = preprocessing["input_size"]
    resized_height, resized_width = (int(side / preprocessing["crop_pct"]) for side in (height, width))
    image = fn.decoders.image(encoded, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
    image = fn.resize(
        image,
        size=[resized_height, resized_width],
        mode="stretch" if preprocessing["crop_mode"] == "squash" else "not_smaller",
        interp_type=interpolations[preprocessing["interpolation"]],
        antialias=True,
        subpixel_scale=False,
        # A strip is scaled up by its short side: without an end its long one takes gigabytes.
        max_size=[preprocessing["max_pixels"] // side for side in (resized_width, resized_height)],
    )
    return fn.crop(image, crop=(height, width))


@autoserialize
@pipeline_def(
    batch_size=64,
    num_threads=int(os.environ.get("FRUITSTAND_THREADS", "2")),
    device_id=0 if GPU else None,
    prefetch_queue_depth=1,
    output_dtype=[types.UINT8],
    output_ndim=[3],
)
def image_decode():
    encoded = fn.external_source(device="cpu", name="ENCODED", dtype=types.UINT8, ndim=1)
    return decode_pixels(encoded, PREPROCESSING, on_gpu=GPU)
