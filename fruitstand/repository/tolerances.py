"""Largest allowed differences between two computations of an answer, for gates and `fruitstand attest`."""

MAX_DECODE_DIFF = 1.0
"""Mean pixel difference of two decoders on the worst image, in levels of 255."""
MAX_ABS_DIFF = 1e-4
"""Difference between PyTorch's and ONNX Runtime's probabilities, fp32."""
MAX_FP16_ABS_DIFF = 1e-2
"""Difference between PyTorch's and ONNX Runtime's probabilities, fp16."""
MAX_INT8_DISTANCE = 0.1
"""Total variation between int8 and fp32 probabilities, 0 to 1, mean over images."""
MIN_AGREEMENT = 0.995
"""Share of images with the same top-1 as PyTorch, for int8 and fp16; fp32 must agree on all."""
MAX_SUM_ERROR = 1e-3
"""Difference of an answer's sum of probabilities from 1."""
MIN_MARGIN = 0.2
"""Margin between the two highest probabilities above which rounding on another CPU cannot change the
top-1."""


def all_but_share_or_one_image(share: float, num_images: int) -> float:
    """Lower `share` so that one image may differ: 0.995 of 12 images would otherwise require all of them."""
    # Not 1 - 1 / n, which may differ from (n - 1) / n in floating point.
    return min(share, (num_images - 1) / num_images)
