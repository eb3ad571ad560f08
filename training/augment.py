"""Augmentation on whole batches of pixels: turn, scale, shift and light, in a few tensor operations.

Small on purpose: Fruits-360's films already show every fruit from all sides, and a short run spends its steps
better on them than on mirror images. See docs/DECISIONS.md, "Less augmentation".
"""

import math

import torch
import torch.nn.functional as F

MAX_ROTATION_DEG = 8.0
SCALE_RANGE = (0.92, 1.08)
MAX_SHIFT = 0.04
"""Share of the side."""
LIGHT_RANGE = (0.9, 1.1)


def to_size(pixels_nhwc_u8: torch.Tensor, size: int) -> torch.Tensor:
    """Shrink a batch for an epoch on small images.

    Args:
        pixels_nhwc_u8: (N, H, W, 3) uint8.
        size: side of the result, pixels.

    Returns:
        (N, 3, size, size) float32, 0 to 255.
    """
    batch = pixels_nhwc_u8.permute(0, 3, 1, 2)
    if batch.shape[-1] != size:
        batch = F.interpolate(batch, size=(size, size), mode="bilinear", antialias=True)
    return batch.float()


def augment(batch_nchw_f32: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Vary a batch; what moves in from outside is white, as Fruits-360's background.

    Args:
        batch_nchw_f32: (N, 3, S, S) float32, 0 to 255.
        generator: of all random numbers used.

    Returns:
        The same shape and range.
    """
    n = batch_nchw_f32.shape[0]

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator)

    angle = uniform(-MAX_ROTATION_DEG, MAX_ROTATION_DEG) * (math.pi / 180)
    scale = uniform(*SCALE_RANGE)
    # affine_grid's coordinates span 2 from edge to edge.
    shift_x, shift_y = uniform(-2 * MAX_SHIFT, 2 * MAX_SHIFT), uniform(-2 * MAX_SHIFT, 2 * MAX_SHIFT)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([cos, -sin, shift_x, sin, cos, shift_y], dim=1).view(n, 2, 3)
    theta = theta.to(batch_nchw_f32.device)
    grid = F.affine_grid(theta, list(batch_nchw_f32.shape), align_corners=False)
    moved = 255 - F.grid_sample(255 - batch_nchw_f32.contiguous(), grid, align_corners=False)
    light = uniform(*LIGHT_RANGE).view(n, 1, 1, 1).to(moved.device)
    return (moved * light).clamp(0, 255)
