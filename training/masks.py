"""Where the fruit is on a white picture: everything but the white that hangs together with the border."""

import numpy as np
import torch
import torch.nn.functional as F

from fruitstand.artefacts import atomic_file
from fruitstand.manifest import PreparedData
from fruitstand.progress import track
from training.pixels import cache_path

WHITE_LEVEL = 238
"""Darkest of red, green and blue from which a pixel is white: JPEG leaves that much beside an edge."""
CHUNK = 256


def fruit_masks(pixels_nhwc_u8: torch.Tensor) -> torch.Tensor:
    """Flood the white from the border, as Fruits-360's author did to make it white.

    Args:
        pixels_nhwc_u8: (N, H, W, 3) uint8.

    Returns:
        (N, H, W) uint8, 255 on the fruit and 0 on the background. One pixel of the fruit's rim is given up:
        it is mixed with white. An image without white at its border is all fruit, one all white holds none.
    """
    white = (pixels_nhwc_u8.amin(dim=3) >= WHITE_LEVEL).float().unsqueeze(1)
    # A frame of white round the picture is where the flood starts.
    white = F.pad(white, (1, 1, 1, 1), value=1.0)
    flood = torch.zeros_like(white)
    flood[..., 0, :] = flood[..., -1, :] = flood[..., :, 0] = flood[..., :, -1] = 1.0
    reached = flood.sum()
    while True:
        flood = F.max_pool2d(flood, 3, stride=1, padding=1) * white
        if (now := flood.sum()) == reached:
            break
        reached = now
    flood = F.max_pool2d(flood, 3, stride=1, padding=1)[..., 1:-1, 1:-1]
    return ((1 - flood) * 255).to(torch.uint8).squeeze(1)


def mask_cache(data: PreparedData, pixels: np.ndarray) -> np.ndarray:
    """The masks of all images of a prepared folder, made once.

    Args:
        data: the prepared folder.
        pixels: its pixel cache, (N, H, W, 3) uint8.

    Returns:
        (N, H, W) uint8, read-only, memory-mapped, in manifest order.
    """
    path = cache_path(data, "masks", (pixels.shape, WHITE_LEVEL))
    if not path.exists():
        with atomic_file(path) as temporary:
            masks = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=pixels.shape[:3])
            starts = range(0, len(pixels), CHUNK)
            for start in track(starts, total=len(starts), description="cut out"):
                part = slice(start, start + CHUNK)
                masks[part] = fruit_masks(torch.from_numpy(np.array(pixels[part]))).numpy()
            masks.flush()
            del masks
    return np.load(path, mmap_mode="r")
