"""Numeric checks of a model file, one gate each."""

from pathlib import Path

import numpy as np
import torch

from export.gates.gate import Gate, at_least, at_most, share_or_one_image
from fruitstand.contract import MAX_BATCH_SIZE, Preprocessing
from fruitstand.model.session import open_session, run_batches
from fruitstand.repository.tolerances import MAX_INT8_DISTANCE, MAX_SUM_ERROR, all_but_share_or_one_image

CHECKED_BATCHES = (1, 2, 7, MAX_BATCH_SIZE)
MAX_TOP1_LOSS = 0.002
"""Largest loss of top-1 accuracy of int8 and fp16 against PyTorch."""


def run_torch(model: torch.nn.Module, pixels_nhwc_u8: np.ndarray) -> np.ndarray:
    """Run the served model in PyTorch; returns (N, C) probabilities."""
    parts = np.array_split(pixels_nhwc_u8, -(-len(pixels_nhwc_u8) // MAX_BATCH_SIZE))
    with torch.inference_mode():
        return np.concatenate([model(torch.from_numpy(part)).numpy() for part in parts])


def parity_gates(
    path: Path,
    model: torch.nn.Module,
    pixels_nhwc_u8: np.ndarray,
    *,
    max_abs_diff: float,
    reference: str = "torch",
) -> list[Gate]:
    """Compare PyTorch with ONNX Runtime on real images, at every batch size in `CHECKED_BATCHES`.

    The images are (N, H, W, 3) uint8, repeated when fewer than a batch. `reference` is the model's name in
    the gates'.
    """
    session = open_session(path)
    gates = []
    for batch_size in CHECKED_BATCHES:
        batch = np.resize(pixels_nhwc_u8, (batch_size, *pixels_nhwc_u8.shape[1:]))
        difference = np.abs(run_batches(session, batch) - run_torch(model, batch)).max()
        gates.append(at_most(f"{reference}_vs_{path.stem}_batch_{batch_size}", difference, max_abs_diff))
    return gates


def extreme_pixels_gate(path: Path, preprocessing: Preprocessing, engine: str = "cpu") -> Gate:
    """Check that black, white and noise give probability distributions, without NaN or Inf."""
    shape = (*preprocessing.input_size, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels = np.stack([np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), noise])
    sums = run_batches(open_session(path, engine), pixels).sum(axis=1)
    worst = np.nan_to_num(np.abs(sums - 1), nan=np.inf).max()
    return at_most(f"extreme_pixels_{path.stem}", worst, MAX_SUM_ERROR)


def agreement_gate(variant: str, got: np.ndarray, expected: np.ndarray, share: float | None = None) -> Gate:
    """Check the share of images with the same top-1 answer.

    Both are (N, C) probabilities. `share` is the least that is allowed, or all but one image of a small set;
    None requires all images.
    """
    same = np.mean(got.argmax(axis=1) == expected.argmax(axis=1))
    limit = 1.0 if share is None else all_but_share_or_one_image(share, len(expected))
    return at_least(f"{variant}_top1_agreement", same, limit)


def top1_loss_gate(variant: str, got: np.ndarray, expected: np.ndarray, targets: np.ndarray) -> Gate:
    """Check the loss of top-1 accuracy against PyTorch; arguments as in `agreement_gate`."""
    right = [int(np.sum(answers.argmax(axis=1) == targets)) for answers in (expected, got)]
    limit = share_or_one_image(MAX_TOP1_LOSS, len(targets))
    return at_most(f"{variant}_top1_loss", (right[0] - right[1]) / len(targets), limit)


def distance_gate(variant: str, got: np.ndarray, expected: np.ndarray) -> Gate:
    """Check the mean total variation between answers, 0 to 1; finds wrong kernels whatever the accuracy."""
    distance = np.abs(got - expected).sum(axis=1).mean() / 2
    return at_most(f"{variant}_distance", distance, MAX_INT8_DISTANCE)
