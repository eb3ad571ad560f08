from collections import Counter
from dataclasses import replace

import pytest
import torch

from fruitstand.manifest import ManifestRow
from training.fit.augmentation import augment, to_size
from training.fit.config import TrainConfig
from training.fit.pixel_cache import ShuffledBatches, balanced_weights

PLAIN = TrainConfig(rotation_deg=0, min_scale=1.0, max_scale=1.0, shift=0, light=0)


def disc(size: int = 40, radius: int = 14) -> torch.Tensor:
    """A red disc on white with a white spot inside, (1, S, S, 3) uint8."""
    y, x = torch.meshgrid(torch.arange(size) - size / 2, torch.arange(size) - size / 2, indexing="ij")
    distance = (x**2 + y**2).sqrt()
    pixels = torch.full((size, size, 3), 255, dtype=torch.uint8)
    pixels[distance < radius] = torch.tensor([200, 30, 20], dtype=torch.uint8)
    pixels[distance < 3] = 255
    return pixels.unsqueeze(0)


def test_augmentation_keeps_shape_and_range_and_white_stays_white() -> None:
    """What moves in from outside is white; the same generator gives the same pictures."""
    white = torch.full((4, 50, 50, 3), 255, dtype=torch.uint8)
    batch = to_size(white, 48)
    assert batch.shape == (4, 3, 48, 48)
    out = augment(batch, TrainConfig(), torch.Generator().manual_seed(0))
    assert torch.equal(out, augment(batch, TrainConfig(), torch.Generator().manual_seed(0)))
    assert out.shape == batch.shape
    assert out.max() <= 255
    assert all(image.unique().numel() == 1 for image in out)  # only the light changed


def test_augmentation_turned_off_changes_nothing() -> None:
    """Each setting at its neutral value leaves the pixels alone."""
    batch = to_size(disc(), 40)
    torch.testing.assert_close(augment(batch, PLAIN, torch.Generator()), batch, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("setting", "flipped"), [pytest.param("hflip", (3,), id="hflip"), pytest.param("vflip", (2,), id="vflip")]
)
def test_a_mirror_image_is_one(setting: str, flipped: tuple[int]) -> None:
    """Left and right, or top and bottom, change places."""
    batch = torch.rand(2, 3, 16, 16) * 255
    out = augment(batch, replace(PLAIN, **{setting: 1.0}), torch.Generator().manual_seed(0))
    torch.testing.assert_close(out, batch.flip(flipped), atol=0.01, rtol=0)


def test_moves_of_whole_pixels_blur_nothing() -> None:
    """Mirrors, quarter turns and shifts together keep the values of the pixels as they are."""
    batch = to_size(disc(), 40).repeat(16, 1, 1, 1)
    config = replace(PLAIN, hflip=0.5, vflip=0.5, quarter_turn=0.5, shift=0.1)
    out = augment(batch, config, torch.Generator().manual_seed(0))
    assert set(out[:, 2].round().unique().tolist()) == {20.0, 255.0}
    assert len({image.numpy().tobytes() for image in out.round()}) > 8


def test_a_quarter_turn_mirrors_along_the_diagonal() -> None:
    """Rows become columns."""
    batch = torch.rand(2, 3, 16, 16) * 255
    out = augment(batch, replace(PLAIN, quarter_turn=1.0), torch.Generator().manual_seed(0))
    torch.testing.assert_close(out, batch.transpose(2, 3), atol=0.01, rtol=0)


def test_gamma_leaves_black_and_white_alone() -> None:
    """Only what lies between changes."""
    batch = to_size(disc(), 40).repeat(4, 1, 1, 1)
    out = augment(batch, replace(PLAIN, gamma=0.5), torch.Generator().manual_seed(0))
    assert (out[:, :, 0, 0] > 254.9).all()
    assert out[:, 0, 20, 10].std() > 5


def test_scale_is_the_size_of_the_fruit() -> None:
    """At half the scale a disc covers a quarter of the area."""
    batch = to_size(disc(), 40)
    half = augment(batch, replace(PLAIN, min_scale=0.5, max_scale=0.5), torch.Generator())
    assert (255 - half[:, 2]).sum() / (255 - batch[:, 2]).sum() == pytest.approx(0.25, rel=0.05)


def test_gray_images_have_no_colour() -> None:
    """All three channels become the same."""
    out = augment(to_size(disc(), 40), replace(PLAIN, gray_prob=1.0), torch.Generator())
    torch.testing.assert_close(out[:, 0], out[:, 2])


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    """Every image once an epoch, in an order that a resumed run repeats from where it stopped."""
    first, again = ShuffledBatches(10, 2, 0), ShuffledBatches(10, 2, 0)
    assert list(first) == list(again)
    assert sorted(position for batch in first for position in batch) == list(range(10))
    again.start_at(0, 3)
    assert list(again) == list(first)[3:]
    again.start_at(1)
    assert list(again) != list(first)


def test_processes_share_each_batch() -> None:
    """Two of them together see what one alone would see, image by image."""
    alone = list(ShuffledBatches(11, 4, 7))
    shares = [list(ShuffledBatches(11, 4, 7, rank=rank, world=2)) for rank in range(2)]
    assert [one + other for one, other in zip(*shares, strict=True)] == alone


def test_balanced_batches_draw_each_class_and_each_of_its_objects_equally_often() -> None:
    """Whatever the number of images; and again in the order that seed and epoch give."""
    counts = {("Apple", "Apple 1"): 60, ("Apple", "Apple 2"): 20, ("Cherry", "Cherry 1"): 20}
    rows = [
        ManifestRow(path="", sha256="", label=label, object=variety, film="", frame=0, split="train")
        for (label, variety), count in counts.items()
        for _ in range(count)
    ]
    weights = balanced_weights(rows)
    assert weights.sum() == pytest.approx(1)
    batches = ShuffledBatches(len(rows), 10, 0, weights=weights)
    assert list(batches) == list(batches)
    drawn: Counter[str] = Counter()
    for epoch in range(100):
        batches.start_at(epoch)
        drawn.update(rows[position].object for batch in batches for position in batch)
    shares = [drawn[variety] / drawn.total() for _, variety in counts]
    assert shares == pytest.approx([0.25, 0.25, 0.5], abs=0.02)
