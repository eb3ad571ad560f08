"""Check that the served decode step matches the reference decode of training.

Every server runs the rendered DALI pipeline; the embedded one decodes large JPEGs at a reduced size instead.
The reference decode, `fruitstand.images.reference_decode`, is the training transform:
`training/fit/pixel_cache.py` reads its images with it and nothing else, and a test compares the two.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.gates.gate import Gate, at_least, at_most
from export.publish.render import render_repository
from fruitstand.contract import ENCODED, IMAGE_DECODE, Preprocessing
from fruitstand.errors import DataError
from fruitstand.images.dali_pipeline import pipeline_definition
from fruitstand.images.reference_decode import decode_inspected, decode_reference, is_reduced
from fruitstand.images.structure import inspect_image
from fruitstand.images.synthetic import photographs, supported_images
from fruitstand.model.session import open_session, run_batches
from fruitstand.repository.tolerances import MAX_DECODE_DIFF, all_but_share_or_one_image

if TYPE_CHECKING:
    from export.gates.validation import Validation

PIPELINE = Path(IMAGE_DECODE, "1", "dali.py")
MIN_IMAGES = 200
"""Smallest number of generated images, of all sizes, modes, qualities and orientations."""
BATCH_SIZE = 16
"""Images per DALI batch, limited because DALI holds the full-size pixels of all of them."""
MIN_AGREEMENT = 0.999
"""Smallest share of all images whose top-1 answer is the same for both decodes."""


def decode_as_served(encoded: Sequence[bytes], preprocessing: Preprocessing) -> np.ndarray:
    """Decode images on the CPU with the DALI pipeline that export renders for this contract.

    Returns:
        (N, H, W, 3) uint8.

    Raises:
        DataError: one of them is refused, or DALI cannot decode it.
    """
    source = render_repository(preprocessing, ["a", "b"])[PIPELINE]
    pipeline = pipeline_definition(source, PIPELINE.name).define(batch_size=BATCH_SIZE, device_id=None)
    pipeline.build()
    parts = []
    for start in range(0, len(encoded), BATCH_SIZE):
        batch = encoded[start : start + BATCH_SIZE]
        pictures = [inspect_image(content, preprocessing).content for content in batch]
        pipeline.feed_input(ENCODED, [np.frombuffer(picture, np.uint8) for picture in pictures])
        try:
            (output,) = pipeline.run()
        except RuntimeError as exc:
            raise DataError(f"DALI cannot decode one of images {start} to {start + len(batch) - 1}") from exc
        parts.append(np.array(output.as_tensor()))
    return np.concatenate(parts)


def decode_reduced(
    encoded: Sequence[bytes], preprocessing: Preprocessing
) -> tuple[list[int], list[np.ndarray]]:
    """Reduced decode of the images that the embedded server decodes so; returns positions and pixels."""
    positions, pixels = [], []
    for position, content in enumerate(encoded):
        inspected = inspect_image(content, preprocessing)
        if is_reduced(inspected.header, preprocessing):
            positions.append(position)
            pixels.append(decode_inspected(inspected, preprocessing, reduced=True))
    return positions, pixels


def decode_gates(
    fp32: Path, preprocessing: Preprocessing, validation: "Validation", *, min_margin: float = 0.0
) -> list[Gate]:
    """Compare the served decode with the reference decode, in pixels and in answers.

    An answer may turn where first and second probability differ by less than `min_margin`.
    """
    corpus = [*supported_images().values(), *photographs().values()]
    reference = np.stack([decode_reference(content, preprocessing) for content in corpus])
    served = decode_as_served(corpus, preprocessing)
    positions, reduced = decode_reduced([*corpus, *validation.encoded], preprocessing)
    references = np.concatenate([reference, validation.pixels_nhwc_u8])
    pairs = [(references, np.concatenate([served, validation.served_nhwc_u8]))]
    gates = [
        at_least("decode_num_images", len(corpus), MIN_IMAGES),
        at_most("decode_mean_abs_diff_of_255", _worst(reference, served), MAX_DECODE_DIFF),
    ]
    if reduced:
        pairs.append((references[positions], np.stack(reduced)))
        gates.append(at_most("decode_reduced_mean_abs_diff_of_255", _worst(*pairs[-1]), MAX_DECODE_DIFF))
    session = open_session(fp32)
    expected, got = (
        np.concatenate([run_batches(session, decoded) for decoded in way]) for way in zip(*pairs, strict=True)
    )
    second, first = np.sort(expected, axis=1)[:, -2:].T
    is_same = (expected.argmax(axis=1) == got.argmax(axis=1)) | (first - second < min_margin)
    limit = all_but_share_or_one_image(MIN_AGREEMENT, len(expected))
    return [*gates, at_least("decode_top1_agreement", np.mean(is_same), limit)]


def _worst(expected_nhwc_u8: np.ndarray, got_nhwc_u8: np.ndarray) -> float:
    """Mean pixel difference of the worst image, 0 to 255."""
    differences = np.abs(expected_nhwc_u8.astype(np.int16) - got_nhwc_u8)
    return float(differences.mean(axis=(1, 2, 3)).max())
