"""Augment whole batches: geometry and light, as tensor operations.

timm's transforms handle one Pillow image at a time, which would take CPU time from the model. Random erasing,
mixup and cutmix work on batches in timm, so `training.fit.steps` uses timm's.
"""

import math

import torch
import torch.nn.functional as F

from training.fit.config import TrainConfig

LUMA = (0.299, 0.587, 0.114)


def to_size(pixels_nhwc_u8: torch.Tensor, size: int) -> torch.Tensor:
    """Resize a batch to this epoch's image size.

    Args:
        pixels_nhwc_u8: (N, H, W, C) uint8.
        size: side of the result, pixels.

    Returns:
        (N, C, size, size) float32, 0 to 255.
    """
    batch = pixels_nhwc_u8.permute(0, 3, 1, 2)
    if batch.shape[-1] != size:
        if batch.is_cuda:  # interpolate takes uint8 on CPUs only, where it is much faster than float
            batch = batch.float()
        batch = F.interpolate(batch, size=(size, size), mode="bilinear", antialias=True)
    return batch.float()


def augment(batch_nchw_f32: torch.Tensor, config: TrainConfig, generator: torch.Generator) -> torch.Tensor:
    """Augment a batch; areas that move in from outside are white, like the background of Fruits-360.

    Args:
        batch_nchw_f32: (N, 3, S, S) float32, 0 to 255.
        config: the ranges of each augmentation.
        generator: CPU generator of all random numbers.

    Returns:
        (N, 3, S, S) float32, 0 to 255.
    """
    n, device = len(batch_nchw_f32), batch_nchw_f32.device
    theta = _geometry(batch_nchw_f32.shape, config, generator).to(device)
    grid = F.affine_grid(theta, list(batch_nchw_f32.shape), align_corners=False)
    if config.quarter_turn:
        turned = (torch.rand(n, 1, 1, 1, generator=generator) < config.quarter_turn).to(device)
        batch_nchw_f32 = torch.where(turned, batch_nchw_f32.transpose(2, 3), batch_nchw_f32)
    # grid_sample fills with zeros. Inverting the colours before and after turns these white.
    inverted = (255 - batch_nchw_f32).contiguous()
    return _light(255 - F.grid_sample(inverted, grid, align_corners=False), config, generator)


def _geometry(shape: torch.Size, config: TrainConfig, generator: torch.Generator) -> torch.Tensor:
    """Random affine matrices for `affine_grid`, (n, 2, 3)."""
    n = shape[0]

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator)

    angle = uniform(-config.rotation_deg, config.rotation_deg) * (math.pi / 180)
    size = uniform(config.min_scale, config.max_scale)
    # affine_grid's coordinates span 2 from edge to edge. Shifts by whole pixels do not blur.
    pixels = [uniform(-config.shift, config.shift) * shape[-1] for _ in range(2)]
    shift = torch.stack(pixels).round() * (2 / shape[-1])
    mirror_x, mirror_y = (1 - 2 * (uniform(0, 1) < share).float() for share in (config.hflip, config.vflip))
    cos, sin = angle.cos() / size, angle.sin() / size
    return torch.stack(
        [cos * mirror_x, -sin * mirror_y, shift[0], sin * mirror_x, cos * mirror_y, shift[1]], dim=1
    ).view(n, 2, 3)


def _light(batch: torch.Tensor, config: TrainConfig, generator: torch.Generator) -> torch.Tensor:
    """Vary gamma, brightness, colour, contrast and saturation: (N, 3, S, S), 0 to 255."""
    n = len(batch)

    def around_one(share: float, channels: int = 1) -> torch.Tensor:
        values = torch.empty(n, channels, 1, 1).uniform_(1 - share, 1 + share, generator=generator)
        return values.to(batch.device)

    if config.gamma:
        gamma = torch.empty(n, 1, 1, 1).uniform_(-config.gamma, config.gamma, generator=generator).exp()
        batch = 255 * (batch / 255).clamp(1e-3, 1) ** gamma.to(batch.device)
    batch = batch * (around_one(config.light) * around_one(config.color, 3))
    if config.contrast:
        middle = batch.mean(dim=(1, 2, 3), keepdim=True)
        batch = middle + (batch - middle) * around_one(config.contrast)
    if config.gray_prob:
        gray = (torch.rand(n, 1, 1, 1, generator=generator) < config.gray_prob).to(batch.device)
        luma = (batch * torch.tensor(LUMA, device=batch.device).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
        batch = torch.where(gray, luma, batch)
    return batch.clamp(0, 255)
