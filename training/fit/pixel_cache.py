"""Decode all images once into a memory-mapped file, so that training needs no CPU time for decoding.

The file lies in the prepared folder under `cache/`. Its name holds a hash of the manifest and the geometry.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from fruitstand.artefacts import atomic_file, sweep_temporaries
from fruitstand.contract import Preprocessing
from fruitstand.images.reference_decode import decode_rows
from fruitstand.manifest import ManifestRow, PreparedData
from fruitstand.progress import track


def pixel_cache(data: PreparedData, preprocessing: Preprocessing) -> np.ndarray:
    """Decode and resize all images of a prepared folder, or reuse an earlier call's file.

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
    key = hashlib.sha256(repr((data.manifest_sha256, geometry)).encode()).hexdigest()[:16]
    path = data.directory / "cache" / f"pixels-{key}.npy"
    if not path.exists():
        sweep_temporaries(path.parent)
        with atomic_file(path) as temporary:
            shape = (len(data.rows), *preprocessing.input_size, 3)
            pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            decoded = decode_rows(data, data.rows, preprocessing)
            for index, image in enumerate(track(decoded, total=len(data.rows), description="decode")):
                pixels[index] = image
            pixels.flush()
            del pixels
    return np.load(path, mmap_mode="r")


class SplitPixels(Dataset):
    """The images of one split; indexing with a list of positions returns a whole batch."""

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
    """Sampling weights that draw each class equally often, and each object equally often within its class.

    Returns:
        (N,) float64, one weight per row, sum 1.
    """
    num_images = Counter((row.label, row.object) for row in rows)
    num_objects = Counter(label for label, _ in num_images)
    weights = [1 / (num_images[row.label, row.object] * num_objects[row.label]) for row in rows]
    return torch.tensor(weights, dtype=torch.float64) / len(num_objects)


class ShuffledBatches(Sampler[list[int]]):
    """Yields this process's share of each batch, in an order that depends only on seed and epoch.

    A short last batch is dropped. All processes together see the same order, whatever their number. With
    `weights`, an epoch draws `num_images` images with replacement.
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
        """Images in one batch, over all processes."""
        self._epoch = self._first = 0

    def start_at(self, epoch: int, first: int = 0) -> None:
        """Make the next iteration begin at batch `first` of `epoch`."""
        self._epoch, self._first = epoch, first

    def __len__(self) -> int:
        return self._num_images // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        """Yield lists of positions."""
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
    """Load whole batches in the sampler's order."""
    return DataLoader(
        dataset,
        sampler=batches,
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )


def eval_loader(dataset: Dataset, *, batch_size: int = 128, rank: int = 0, world: int = 1) -> DataLoader:
    """Load every image once, in manifest order; with several processes, each takes every `world`-th batch."""
    positions = list(range(len(dataset)))
    batches = [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
    return DataLoader(dataset, sampler=batches[rank::world], batch_size=None)
