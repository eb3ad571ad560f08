"""Images decoded once into one file of pixels, memory-mapped: the cores stay on the model.

The cache lies in the prepared folder under `cache/` and is keyed by the manifest and the geometry.
"""

import hashlib

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from fruitstand.artefacts import atomic_file, sweep_temporaries
from fruitstand.contract import Preprocessing
from fruitstand.manifest import PreparedData
from fruitstand.progress import track
from fruitstand.reference_decode import decode_rows


def pixel_cache(data: PreparedData, preprocessing: Preprocessing) -> np.ndarray:
    """All images of a prepared folder as the model sees them.

    Args:
        data: the prepared folder.
        preprocessing: size and filter of the resize.

    Returns:
        (N, H, W, 3) uint8, read-only, memory-mapped, in manifest order.

    Raises:
        DataError: an image changed since it was prepared.
    """
    geometry = (data.manifest_sha256, preprocessing.input_size, preprocessing.interpolation)
    key = hashlib.sha256(repr(geometry).encode()).hexdigest()[:16]
    path = data.directory / "cache" / f"pixels-{key}.npy"
    if not path.exists():
        shape = (len(data.rows), *preprocessing.input_size, 3)

        sweep_temporaries(path.parent)
        with atomic_file(path) as temporary:
            pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            decoded = decode_rows(data, data.rows, preprocessing)
            for index, image in enumerate(track(decoded, total=len(data.rows), description="decode")):
                pixels[index] = image
            pixels.flush()
            del pixels
    return np.load(path, mmap_mode="r")


class SplitPixels(Dataset):
    """One split's images; indexed with a list of positions it gives a whole batch."""

    def __init__(self, data: PreparedData, pixels: np.ndarray, split: str) -> None:
        index = data.label_index()
        self._pixels = pixels
        self._rows = np.array([i for i, row in enumerate(data.rows) if row.split == split])
        self.targets = torch.tensor([index[data.rows[i].label] for i in self._rows])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, positions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, H, W, 3) uint8 pixels and (N,) int64 targets."""
        return torch.from_numpy(self._pixels[self._rows[positions]]), self.targets[positions]


class ShuffledBatches(Sampler[list[int]]):
    """Whole batches in an order that depends on seed and epoch alone; a short last batch is dropped."""

    def __init__(self, num_images: int, batch_size: int, seed: int) -> None:
        self._num_images, self._seed, self._epoch = num_images, seed, 0
        self._batch_size = min(batch_size, num_images)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._num_images // self._batch_size

    def __iter__(self):
        """Lists of positions."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order = torch.randperm(self._num_images, generator=generator).tolist()
        for start in range(0, len(self) * self._batch_size, self._batch_size):
            yield order[start : start + self._batch_size]


def train_loader(dataset: SplitPixels, *, batch_size: int, seed: int) -> DataLoader:
    """Shuffled batches for training."""
    return DataLoader(dataset, sampler=ShuffledBatches(len(dataset), batch_size, seed), batch_size=None)


def eval_loader(dataset: SplitPixels, *, batch_size: int = 128) -> DataLoader:
    """Every image once, in manifest order."""
    positions = list(range(len(dataset)))
    batches = [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
    return DataLoader(dataset, sampler=batches, batch_size=None)
