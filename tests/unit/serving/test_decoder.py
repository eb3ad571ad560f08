from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from export.publish.render import write_repository
from fruitstand.contract import ENCODED, IMAGE_DECODE, Preprocessing
from fruitstand.errors import ArtefactError, ImageRejected
from fruitstand.images.reference_decode import decode_inspected, decode_reference
from fruitstand.images.structure import inspect_image
from fruitstand.images.synthetic import encode, pattern, supported_images
from serving.attest.kinds import ImageKind, image_kinds
from serving.engine.decoder import Decoder

MAX_MEAN_DIFF = 1.0
"""Of 255, mean over an image's pixels: the parity the contract asks for."""


@pytest.fixture(scope="module")
def preprocessing() -> Preprocessing:
    """The contract."""
    return Preprocessing()


@pytest.fixture(scope="module")
def decoder(preprocessing: Preprocessing, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """The pipeline that is served."""
    return decoder_for(preprocessing, tmp_path_factory.mktemp("repository"))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param({"crop_pct": 0.875, "interpolation": "bicubic"}, id="224_bicubic"),
        pytest.param({"crop_pct": 0.95, "crop_mode": "squash"}, id="224_squash"),
        pytest.param({"input_size": (160, 320)}, id="not_square"),
    ],
)
def other_contract(request: pytest.FixtureRequest) -> Preprocessing:
    """The contract of a model of timm's."""
    return Preprocessing(**{"input_size": (224, 224)} | request.param)


def decoder_for(contract: Preprocessing, directory: Path) -> Decoder:
    """The pipeline that is served for a contract."""
    write_repository(directory, contract, ["a", "b"])
    pipeline = directory / IMAGE_DECODE / "1" / "dali.py"
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


@pytest.mark.parametrize("kind", image_kinds(), ids=lambda kind: kind.name)
def test_training_and_serving_give_the_same_verdict(
    kind: ImageKind, decoder: Decoder, preprocessing: Preprocessing
) -> None:
    """Yardstick and DALI: the same reason, or the same pixels."""
    (served,) = decoder.decode([as_array(kind.content)])
    if kind.is_accepted:
        assert isinstance(served, np.ndarray), str(served)
        assert (
            np.abs(served - decode_reference(kind.content, preprocessing).astype(int)).mean() <= MAX_MEAN_DIFF
        )
        return
    assert isinstance(served, ImageRejected)
    assert str(served).startswith(kind.verdict)
    with pytest.raises(ImageRejected) as caught:
        decode_reference(kind.content, preprocessing)
    assert str(caught.value).startswith(kind.verdict)


def test_bad_images_fail_alone_in_any_mixture(decoder: Decoder) -> None:
    """Neighbours are bit-equal to what they are alone, in this batch and the next."""
    kinds = [kind for kind in image_kinds() if len(kind.content) < 2**20]
    arrays = [as_array(kind.content) for kind in kinds]
    alone = [decoder.decode([array])[0].copy() if kind.is_accepted else None
             for kind, array in zip(kinds, arrays, strict=True)]  # fmt: skip
    random = np.random.default_rng(0)
    for _ in range(40):
        drawn = random.integers(0, len(kinds), random.integers(1, 65))
        for index, got in zip(drawn, decoder.decode([arrays[index] for index in drawn]), strict=True):
            if alone[index] is None:
                assert str(got).startswith(kinds[index].verdict), kinds[index].name
            else:
                np.testing.assert_array_equal(got, alone[index], kinds[index].name)


def test_a_pipeline_that_is_dead_is_replaced(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """When an error really ends it, as DALI announces, the next image gets a new one."""
    good, bad = (
        as_array(kind.content) for kind in image_kinds() if kind.name in ("jpeg", "webp_overwritten")
    )
    expected = decoder.decode([good])[0].copy()
    dead = decoder._pipeline
    monkeypatch.setattr(dead, "run", lambda: (_ for _ in ()).throw(RuntimeError("no longer valid")))
    results = decoder.decode([good, bad])
    np.testing.assert_array_equal(results[0], expected)
    assert isinstance(results[1], ImageRejected)
    assert decoder._pipeline is not dead


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
    path = tmp_path / "model.dali"
    path.write_bytes(b"no pipeline")
    with pytest.raises(ArtefactError, match="not a serialised DALI pipeline"):
        Decoder(path, input_name=ENCODED, max_batch_size=1)


def test_dali_agrees_with_the_yardstick_for_any_contract(
    other_contract: Preprocessing, tmp_path: Path, large_jpegs: dict[str, bytes]
) -> None:
    """Crop share, filter, crop mode and shape: at most 1 of 255 for the worst image, large ones included."""
    decoder = decoder_for(other_contract, tmp_path)
    images = supported_images() | large_jpegs
    for name, content in images.items():
        (got,) = decoder.decode([as_array(content)])
        assert isinstance(got, np.ndarray), f"{name}: {got}"
        assert np.abs(got - decode_reference(content, other_contract).astype(int)).mean() <= MAX_MEAN_DIFF, (
            name
        )


def test_large_and_small_images_share_a_batch(
    decoder: Decoder, preprocessing: Preprocessing, large_jpegs: dict[str, bytes]
) -> None:
    """Each lands in its place, and is what it is alone; a large one that is cut off is refused alone."""
    large, small = list(large_jpegs.values()), [encode(pattern(100 + n, 90)) for n in range(14)]
    files = [file for pair in zip(large, small, strict=True) for file in pair] + [large[0][:200_000]]
    *results, cut = decoder.decode([as_array(content) for content in files])
    assert str(cut).startswith("truncated")
    for content, got in zip(files, results, strict=False):
        assert isinstance(got, np.ndarray), str(got)
        np.testing.assert_array_equal(got, decoder.decode([as_array(content)])[0])
        reduced = decode_inspected(inspect_image(content, preprocessing), preprocessing, reduced=True)
        assert np.abs(got - reduced.astype(int)).mean() <= MAX_MEAN_DIFF


def test_a_large_jpeg_whose_data_break_is_refused(decoder: Decoder, large_jpegs: dict[str, bytes]) -> None:
    """Its structure is whole, so only the decoder can find out; its neighbour is answered."""
    whole = large_jpegs["largest_progressive"]
    broken = whole.replace(b"\xff\xc4", b"\xff\xfe", 3)
    good, bad = decoder.decode([as_array(whole), as_array(broken)])
    assert isinstance(good, np.ndarray)
    assert isinstance(bad, ImageRejected)


def test_a_versions_own_limits_are_used(tmp_path: Path, large_jpegs: dict[str, bytes]) -> None:
    """Fewer bytes and pixels than the default's, and no reduced decode where the contract says so."""
    strict = Preprocessing(max_encoded_bytes=50_000, max_pixels=200_000, reduced_decode=0)
    decoder = decoder_for(strict, tmp_path)
    long, large, fine = decoder.decode(
        [
            as_array(large_jpegs["largest"]),
            as_array(encode(pattern(600, 400))),
            as_array(encode(pattern(400, 400))),
        ]
    )
    assert str(long).startswith("too many bytes")
    assert str(large).startswith("too many pixels")
    assert isinstance(fine, np.ndarray)


def test_progressive_photographs_are_decoded_one_at_a_time(
    decoder: Decoder, large_jpegs: dict[str, bytes]
) -> None:
    """A decoder holds all of such a picture; while one is under way the others wait, and all are answered."""
    progressive, plain = as_array(large_jpegs["largest_progressive"]), as_array(large_jpegs["largest"])
    expected = [decoder.decode([one])[0] for one in (progressive, plain)]
    with decoder._progressive, ThreadPoolExecutor(1) as caller:
        waiting = caller.submit(decoder.decode, [progressive])
        np.testing.assert_array_equal(decoder.decode([plain])[0], expected[1])
        assert not waiting.done()
        decoder._progressive.release()
        np.testing.assert_array_equal(waiting.result()[0], expected[0])
        decoder._progressive.acquire()
