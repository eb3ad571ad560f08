"""Is what is served decoded as what was trained on? The rendered DALI pipeline against the reference decode.

The reference decode, `fruitstand.images.reference_decode`, is the training transform:
`training/fit/pixel_cache.py` reads its images with it and nothing else, and a test compares the two.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from export.gates.gate import Gate, at_least, at_most
from export.publish.render import render_repository
from fruitstand.contract import ENCODED, IMAGE_DECODE, MAX_BATCH_SIZE, Preprocessing
from fruitstand.errors import DataError
from fruitstand.images.dali_pipeline import pipeline_definition
from fruitstand.images.reference_decode import decode_reference
from fruitstand.images.structure import inspect_image
from fruitstand.images.synthetic import supported_images
from fruitstand.model.session import open_session, run_batches
from fruitstand.repository.tolerances import MAX_DECODE_DIFF, all_but_share_or_one_image

PIPELINE = Path(IMAGE_DECODE, "1", "dali.py")
MIN_IMAGES = 200
"""Of all sizes, aspect ratios, modes, qualities and orientations."""
MIN_AGREEMENT = 0.999
"""Share of these and of the validation images that are answered alike, whichever way they were decoded."""


def decode_as_served(encoded: Sequence[bytes], preprocessing: Preprocessing) -> np.ndarray:
    """Decode images with the pipeline that export renders for this contract, on the processor.

    Returns:
        (N, H, W, 3) uint8.

    Raises:
        DataError: one of them is refused, or DALI cannot decode it.
    """
    source = render_repository(preprocessing, ["a", "b"])[PIPELINE]
    pipeline = pipeline_definition(source, PIPELINE.name)(batch_size=MAX_BATCH_SIZE, device_id=None)
    pipeline.build()
    parts = []
    for start in range(0, len(encoded), MAX_BATCH_SIZE):
        batch = encoded[start : start + MAX_BATCH_SIZE]
        pictures = [inspect_image(content, preprocessing).content for content in batch]
        pipeline.feed_input(ENCODED, [np.frombuffer(picture, np.uint8) for picture in pictures])
        try:
            (output,) = pipeline.run()
        except RuntimeError as exc:
            raise DataError(f"DALI cannot decode one of images {start} to {start + len(batch) - 1}") from exc
        parts.append(np.array(output.as_tensor()))
    return np.concatenate(parts)


def decode_gates(
    fp32: Path,
    preprocessing: Preprocessing,
    yardstick_nhwc_u8: np.ndarray,
    served_nhwc_u8: np.ndarray,
    *,
    min_margin: float = 0.0,
) -> list[Gate]:
    """How far the pipeline that will be served is from the yardstick, in pixels and in answers.

    Args:
        fp32: the model that answers.
        preprocessing: the contract.
        yardstick_nhwc_u8: (N, H, W, 3) uint8 validation images, decoded by the yardstick.
        served_nhwc_u8: the same images, decoded as served.
        min_margin: between the first and the second probability; a less clear answer may turn.
    """
    corpus = list(supported_images().values())
    yardstick = np.stack([decode_reference(content, preprocessing) for content in corpus])
    served = decode_as_served(corpus, preprocessing)
    worst = np.abs(yardstick.astype(np.int16) - served).mean(axis=(1, 2, 3)).max()
    session = open_session(fp32)
    expected, got = (
        np.concatenate([run_batches(session, pixels) for pixels in decoded])
        for decoded in ((yardstick, yardstick_nhwc_u8), (served, served_nhwc_u8))
    )
    second, first = np.sort(expected, axis=1)[:, -2:].T
    is_same = (expected.argmax(axis=1) == got.argmax(axis=1)) | (first - second < min_margin)
    limit = all_but_share_or_one_image(MIN_AGREEMENT, len(expected))
    return [
        at_least("decode_num_images", len(corpus), MIN_IMAGES),
        at_most("decode_mean_abs_diff_of_255", worst, MAX_DECODE_DIFF),
        at_least("decode_top1_agreement", np.mean(is_same), limit),
    ]
