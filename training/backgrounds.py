"""Backgrounds to paste fruits on: gradients, noise, wood, cloth and other fruits out of focus.

Fruits-360 shows fruit on pure white only, and a network takes the white for part of the fruit. What is drawn
here has no meaning; it only has to be different each time.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

NOISE_CELLS = (2, 4, 8, 16, 32)
"""Sides of the grids of random numbers that noise is summed from."""


def paste(
    fruit_nchw_f32: torch.Tensor, alpha_n1hw: torch.Tensor, others_nchw_f32: torch.Tensor, generator
) -> torch.Tensor:
    """Put each fruit on a background of its own, with a soft shadow.

    Args:
        fruit_nchw_f32: (N, 3, S, S), 0 to 255.
        alpha_n1hw: (N, 1, S, S), 1 on the fruit, 0 beside it.
        others_nchw_f32: (M, 3, S, S), 0 to 255, images that may lie behind it.
        generator: of all random numbers used, on the CPU.

    Returns:
        (N, 3, S, S) float32, 0 to 255.
    """
    n, size = len(fruit_nchw_f32), fruit_nchw_f32.shape[-1]
    behind = backgrounds(n, size, others_nchw_f32, generator)
    # Soft towards the inside: the outermost pixels are mixed with white, and a hard or white rim would be
    # something to recognise a pasted fruit by. Specks of a pixel disappear as well.
    alpha = F.avg_pool2d(alpha_n1hw, 3, stride=1, padding=1, count_include_pad=False)
    alpha = (2 * alpha - 1).clamp(min=0)
    depth = _uniform(n, 0.0, 0.5, generator).to(alpha.device)
    dx, dy = torch.randint(-size // 12, size // 12 + 1, (2,), generator=generator).tolist()
    coarse = F.interpolate(alpha, size=(max(4, size // 6),) * 2, mode="bilinear", antialias=True)
    shadow = F.interpolate(coarse, size=(size, size), mode="bilinear").roll((dy, dx), dims=(2, 3))
    return alpha * fruit_nchw_f32 + (1 - alpha) * behind * (1 - depth * shadow)


def backgrounds(num: int, size: int, others_nchw_f32: torch.Tensor, generator) -> torch.Tensor:
    """Draw backgrounds, each of a random kind.

    Returns:
        (num, 3, size, size) float32, 0 to 255, on the device of `others_nchw_f32`.
    """
    device = others_nchw_f32.device
    kinds = torch.randint(len(_PATTERNS) + 1, (num,), generator=generator)
    result = torch.empty(num, 3, size, size, device=device)
    for kind in range(len(_PATTERNS) + 1):
        chosen = (kinds == kind).nonzero().flatten()
        n = len(chosen)
        if n == 0:
            continue
        if kind < len(_PATTERNS):
            drawn = _coloured(_PATTERNS[kind](n, size, device, generator), generator)
        else:
            drawn = _out_of_focus(others_nchw_f32, n, generator)
        result[chosen.to(device)] = drawn
    grain = torch.rand(num, 1, 1, 1, generator=generator).to(device) * 12
    rough = F.interpolate(torch.randn(num, 1, 64, 64, generator=generator).to(device), size=(size, size))
    return (result + grain * rough).clamp(0, 255)


def _uniform(n: int, low: float, high: float, generator) -> torch.Tensor:
    return torch.empty(n, 1, 1, 1).uniform_(low, high, generator=generator)


def _along(n: int, size: int, device, generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Two coordinates, (n, 1, size, size), -1 to 1, turned by a random angle."""
    angle = _uniform(n, 0, math.pi, generator).to(device)
    line = torch.linspace(-1, 1, size, device=device)
    y, x = line.view(1, 1, size, 1), line.view(1, 1, 1, size)
    return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()


def _gradient(n: int, size: int, device, generator) -> torch.Tensor:
    u, _ = _along(n, size, device, generator)
    return (u + 1.42) / 2.84


def _noise(n: int, size: int, device, generator) -> torch.Tensor:
    """Random numbers on grids of several sizes, each weighted at random."""
    total = torch.zeros(n, 1, size, size, device=device)
    for cells in NOISE_CELLS:
        grid = torch.rand(n, 1, cells, cells, generator=generator).to(device)
        weight = _uniform(n, 0, 1, generator).to(device)
        total += weight * F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)
    low, high = total.amin(dim=(2, 3), keepdim=True), total.amax(dim=(2, 3), keepdim=True)
    return (total - low) / (high - low + 1e-6)


def _wood(n: int, size: int, device, generator) -> torch.Tensor:
    """Stripes bent by noise."""
    u, _ = _along(n, size, device, generator)
    frequency = _uniform(n, 2, 14, generator).to(device)
    bend = _uniform(n, 0, 0.6, generator).to(device) * _noise(n, size, device, generator)
    return 0.5 + 0.5 * torch.sin(math.pi * frequency * (u + bend))


def _cloth(n: int, size: int, device, generator) -> torch.Tensor:
    """Threads crossing, or checks where they are wide."""
    u, v = _along(n, size, device, generator)
    across, along = (_uniform(n, 3, 24, generator).to(device) for _ in range(2))
    sharp = _uniform(n, 1, 6, generator).to(device)
    threads = torch.sin(math.pi * across * u) + torch.sin(math.pi * along * v)
    return torch.sigmoid(sharp * threads)


_PATTERNS: tuple[Callable[..., torch.Tensor], ...] = (_gradient, _noise, _wood, _cloth)


def _coloured(pattern_n1hw: torch.Tensor, generator) -> torch.Tensor:
    """Between two colours, from grey to strong, 0 to 255."""
    n, device = len(pattern_n1hw), pattern_n1hw.device
    saturation = _uniform(n, 0, 1, generator)
    colours = []
    for _ in range(2):
        grey = _uniform(n, 0, 1, generator)
        colours.append((grey + saturation * (torch.rand(n, 3, 1, 1, generator=generator) - grey)).to(device))
    first, second = colours
    return 255 * (first + (second - first) * pattern_n1hw)


def _out_of_focus(others_nchw_f32: torch.Tensor, n: int, generator) -> torch.Tensor:
    """The middle of other images, blurred by a random amount and in other light."""
    size = others_nchw_f32.shape[-1]
    chosen = torch.randint(len(others_nchw_f32), (n,), generator=generator)
    cut = size // 5
    middle = others_nchw_f32[chosen.to(others_nchw_f32.device)][..., cut : size - cut, cut : size - cut]
    coarse = int(torch.randint(5, 20, (), generator=generator))
    small = F.interpolate(middle, size=(coarse, coarse), mode="bilinear", antialias=True)
    light = _uniform(n, 0.3, 1.1, generator).to(small.device)
    return light * F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
