"""How far two computations of the same answer may differ: limits of the gates and of `fruitstand attest`."""

MAX_DECODE_DIFF = 1.0
"""Of 255: mean over the pixels of the worst image, between two decoders."""
MAX_ABS_DIFF = 1e-4
"""Between PyTorch's and ONNX Runtime's probabilities, fp32."""
MAX_FP16_ABS_DIFF = 1e-2
"""The same for fp16."""
MAX_INT8_DISTANCE = 0.1
"""Total variation between int8 and fp32 probabilities, 0 to 1, mean over images."""
MIN_AGREEMENT = 0.995
"""Share of the images that int8 and fp16 answer as PyTorch does; fp32 has to for all."""
MAX_SUM_ERROR = 1e-3
"""Of an answer's probabilities from 1."""
MIN_MARGIN = 0.2
"""Between the first and the second probability: an answer that another CPU's rounding cannot turn."""


def all_but_share_or_one_image(share: float, num_images: int) -> float:
    """A limit on the smallest share: 0.995 of 12 images would be all of them, so one may differ."""
    # Not 1 - 1 / n: that is no float that k / n can equal.
    return min(share, (num_images - 1) / num_images)
