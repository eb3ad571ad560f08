"""Decode and resize for serving. Rendered by `fruitstand export` from the contract: edit export/templates.

NVIDIA's dali backend runs this file with its own Python and serialises the pipeline; the embedded backend
imports it. The CPU decodes unless FRUITSTAND_DECODE_DEVICE=gpu.
"""

import os
from typing import Any

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.triton import autoserialize

GPU = os.environ.get("FRUITSTAND_DECODE_DEVICE") == "gpu"
PREPROCESSING: dict[str, Any] = $preprocessing


$decode_pixels

@autoserialize
@pipeline_def(
    batch_size=$max_batch_size,
    num_threads=int(os.environ.get("FRUITSTAND_THREADS", "2")),
    device_id=0 if GPU else None,
    prefetch_queue_depth=1,
    output_dtype=[types.UINT8],
    output_ndim=[3],
)
def $image_decode():
    encoded = fn.external_source(device="cpu", name="$encoded", dtype=types.UINT8, ndim=1)
    return decode_pixels(encoded, PREPROCESSING, on_gpu=GPU)
