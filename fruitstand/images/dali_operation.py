"""Decode, resize and crop with DALI: the only definition of the served pipeline.

`export.publish.render` copies the source of `decode_pixels` into the `dali.py` of a model repository, which
NVIDIA's container runs without this package. So the function may import only DALI.
"""

from typing import Any


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
