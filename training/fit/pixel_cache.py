"""Images decoded once into one file of pixels, memory-mapped: the cores stay on the model.

The cache lies in the prepared folder under `cache/` and is keyed by the manifest and the geometry.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from fruitstand.artefacts import atomic_file, sweep_temporaries
from fruitstand.contract import Preprocessing
from fruitstand.images.reference_decode import decode_rows
from fruitstand.manifest import ManifestRow, PreparedData
from fruitstand.progress import track


def cache_path(data: PreparedData, kind: str, geometry: object) -> Path:
    """The file of a prepared folder that holds what is computed once from its images."""
    key = hashlib.sha256(repr((data.manifest_sha256, geometry)).encode()).hexdigest()[:16]
    return data.directory / "cache" / f"{kind}-{key}.npy"


def pixel_cache(data: PreparedData, preprocessing: Preprocessing) -> np.ndarray:
    """All images of a prepared folder as the model sees them.

    Args:
        data: the prepared folder.
        preprocessing: the contract.

    Returns:
        (N, H, W, 3) uint8, read-only, memory-mapped, in manifest order.

    Raises:
        DataError: an image changed since it was prepared.
    """
    geometry = (
        preprocessing.input_size,
        preprocessing.interpolation,
        preprocessing.crop_pct,
        preprocessing.crop_mode,
    )
    path = cache_path(data, "pixels", geometry)
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


def balanced_weights(rows: Sequence[ManifestRow]) -> torch.Tensor:
    """Chances that draw each class equally often, and within it each object.

    Args:
        rows: N of them.

    Returns:
        (N,) float64, sum 1.
    """
    num_images = Counter((row.label, row.object) for row in rows)
    num_objects = Counter(label for label, _ in num_images)
    chances = [1 / (num_images[row.label, row.object] * num_objects[row.label]) for row in rows]
    return torch.tensor(chances, dtype=torch.float64) / len(num_objects)


class ShuffledBatches(Sampler[list[int]]):
    """This process's share of each batch, in an order that depends on seed and epoch alone.

    A short last batch is dropped. The order of the images over all processes together does not depend on
    how many there are. With weights an epoch is as many draws with replacement.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        *,
        weights: torch.Tensor | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._num_images, self._seed, self._rank, self._world = num_images, seed, rank, world
        self._weights = weights
        self.batch_size = min(batch_size, num_images) // world * world
        """Images a batch, over all processes."""
        self._epoch = self._first = 0

    def start_at(self, epoch: int, first: int = 0) -> None:
        """Choose the epoch and the first batch of it that the next iteration gives."""
        self._epoch, self._first = epoch, first

    def __len__(self) -> int:
        return self._num_images // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        """Lists of positions."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        if self._weights is None:
            order = torch.randperm(self._num_images, generator=generator).tolist()
        else:
            order = torch.multinomial(
                self._weights, self._num_images, replacement=True, generator=generator
            ).tolist()
        share = self.batch_size // self._world
        for batch in range(self._first, len(self)):
            start = batch * self.batch_size + self._rank * share
            yield order[start : start + share]


def train_loader(dataset: Dataset, batches: ShuffledBatches, *, workers: int = 0) -> DataLoader:
    """Whole batches for training, in the sampler's order."""
    return DataLoader(
        dataset,
        sampler=batches,
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )


def eval_loader(dataset: Dataset, *, batch_size: int = 128, rank: int = 0, world: int = 1) -> DataLoader:
    """Every image once, in manifest order; of several processes each takes every so many-th batch."""
    positions = list(range(len(dataset)))
    batches = [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
    return DataLoader(dataset, sampler=batches[rank::world], batch_size=None)
