"""Is what is served decoded as what was trained on? The rendered DALI pipeline against the yardstick."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from export.render import render_repository
from fruitstand.contract import ENCODED, IMAGE_DECODE, MAX_BATCH_SIZE, Preprocessing
from fruitstand.dali_pipeline import load_pipeline_definition

PIPELINE = Path(IMAGE_DECODE, "1", "dali.py")


def decode_as_served(encoded: Sequence[bytes], preprocessing: Preprocessing) -> np.ndarray:
    """Decode images with the pipeline that export renders for this contract, on the processor.

    Returns:
        (N, H, W, 3) uint8.
    """
    with TemporaryDirectory(prefix="fruitstand-parity-") as scratch:
        path = Path(scratch, "dali.py")
        path.write_bytes(render_repository(preprocessing, ["a", "b"])[PIPELINE])
        pipeline = load_pipeline_definition(path)(batch_size=MAX_BATCH_SIZE, device_id=None)
    pipeline.build()
    parts = []
    for start in range(0, len(encoded), MAX_BATCH_SIZE):
        batch = encoded[start : start + MAX_BATCH_SIZE]
        pipeline.feed_input(ENCODED, [np.frombuffer(content, np.uint8) for content in batch])
        (output,) = pipeline.run()
        parts.append(np.array(output.as_tensor()))
    return np.concatenate(parts)
