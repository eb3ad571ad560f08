from pathlib import Path

import numpy as np
import pytest

from export.corpus import encode, pattern, supported_images
from export.render import write_repository
from fruitstand.contract import ENCODED, IMAGE_DECODE, Preprocessing
from fruitstand.errors import ArtefactError, ImageRejected
from fruitstand.reference_decode import decode_reference
from serving.decoder import Decoder
from tests.images import refused

MAX_MEAN_DIFF = 1.0
"""Of 255, mean over an image's pixels: the parity the contract asks for."""


@pytest.fixture(scope="module")
def preprocessing() -> Preprocessing:
    """The contract."""
    return Preprocessing()


@pytest.fixture(scope="module")
def decoder(preprocessing: Preprocessing, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """The pipeline that is served."""
    repository = tmp_path_factory.mktemp("repository")
    write_repository(repository, preprocessing, ["a", "b"])
    pipeline = repository / IMAGE_DECODE / "1" / "dali.py"
    return Decoder(pipeline, input_name=ENCODED, max_batch_size=64, num_threads=2)


def as_array(content: bytes, padding: int = 0) -> np.ndarray:
    """A file as a request carries it."""
    return np.frombuffer(content + bytes(padding), np.uint8)


@pytest.mark.parametrize("padding", [0, 777])
def test_dali_agrees_with_the_yardstick(padding: int, decoder: Decoder, preprocessing: Preprocessing) -> None:
    """Every size, mode, orientation and quality: what is served is what was trained on."""
    images = supported_images()
    assert len(images) >= 200
    worst = {}
    for name, content in images.items():
        (got,) = decoder.decode([as_array(content, padding)])
        assert isinstance(got, np.ndarray), f"{name}: {got}"
        worst[name] = np.abs(got - decode_reference(content, preprocessing).astype(int)).mean()
    assert {name: diff for name, diff in worst.items() if diff > MAX_MEAN_DIFF} == {}


@pytest.mark.parametrize("name", refused())
def test_a_bad_image_fails_alone(name: str, decoder: Decoder) -> None:
    """Its neighbours' pixels are bit-equal to what they are without it, in this batch and the next."""
    content, reason = refused()[name]
    good = [as_array(image) for image in list(supported_images().values())[:7]]
    alone = [decoder.decode([image])[0].copy() for image in good]
    for position in (0, 3, 7):
        batch = [*good[:position], as_array(content), *good[position:]]
        results = decoder.decode(batch)
        bad = results.pop(position)
        assert isinstance(bad, ImageRejected)
        assert reason in str(bad)
        for got, expected in zip(results, alone, strict=True):
            np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(decoder.decode(good[:1])[0], alone[0])


def test_a_batch_of_nothing_but_bad_images_is_answered(decoder: Decoder) -> None:
    """Each with its own reason."""
    results = decoder.decode([as_array(content) for content, _ in refused().values()])
    assert all(isinstance(result, ImageRejected) for result in results)


def test_a_full_batch_of_different_lengths_is_decoded(decoder: Decoder, preprocessing: Preprocessing) -> None:
    """Sixty-four files, no two of one length."""
    files = [encode(pattern(100 + n, 90 + n)) for n in range(64)]
    results = decoder.decode([as_array(content) for content in files])
    for content, got in zip(files, results, strict=True):
        expected = decode_reference(content, preprocessing).astype(int)
        assert np.abs(got - expected).mean() <= MAX_MEAN_DIFF


def test_a_file_without_exactly_one_pipeline_is_refused(tmp_path: Path) -> None:
    """As in the native backend."""
    path = tmp_path / "dali.py"
    with pytest.raises(ArtefactError, match="no DALI pipeline file"):
        Decoder(path, input_name=ENCODED, max_batch_size=1)
    path.write_text("")
    with pytest.raises(ArtefactError, match="0 functions"):
        Decoder(path, input_name=ENCODED, max_batch_size=1)
