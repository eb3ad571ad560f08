"""The validation images in all forms that the checks need."""

from dataclasses import dataclass

import numpy as np
import torch

from export.gates.checks import run_torch
from export.gates.decode_parity import decode_as_served
from fruitstand.contract import Preprocessing
from fruitstand.images.reference_decode import decode_rows
from fruitstand.manifest import ManifestRow, PreparedData


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """The val split; every array has one row per image, in manifest order."""

    rows: list[ManifestRow]
    encoded: list[bytes]
    """Rows of the data manifest."""
    pixels_nhwc_u8: np.ndarray
    """Pixels by the reference decode, as in training."""
    served_nhwc_u8: np.ndarray
    """Pixels by the DALI pipeline that will be served."""
    targets: np.ndarray
    """(N,) class indices of the labels."""
    reference: np.ndarray
    """(N, C) PyTorch's answers to the reference decode's pixels, which every file is compared with."""


def read_validation(data: PreparedData, preprocessing: Preprocessing, model: torch.nn.Module) -> Validation:
    """Decode the val split with both decoders, and run PyTorch on it.

    Raises:
        DataError: the split is empty, or an image was changed since it was prepared.
    """
    rows = data.split("val")
    pixels = np.stack(list(decode_rows(data, rows, preprocessing)))
    encoded = [(data.directory / row.path).read_bytes() for row in rows]
    index = data.label_index()
    return Validation(
        rows=rows,
        encoded=encoded,
        pixels_nhwc_u8=pixels,
        served_nhwc_u8=decode_as_served(encoded, preprocessing),
        targets=np.array([index[row.label] for row in rows]),
        reference=run_torch(model, pixels),
    )
