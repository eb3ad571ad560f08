from pathlib import Path

import numpy as np
import pytest

from fruitstand.contract import Preprocessing
from fruitstand.errors import ServerError
from fruitstand.images.synthetic import encode, pattern
from serving.attest.kinds import image_kinds
from serving.engine.decode_step import DecodeStep
from serving.engine.decoder import Decoder

SERVED = Path("model_repository/image_decode/1/dali.py")


def decoder(path: Path = SERVED) -> Decoder:
    """A pipeline for one image at a time."""
    return Decoder(path, input_name="ENCODED", max_batch_size=1, num_threads=1)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"output": []}, id="no_output"),
        pytest.param(
            {"output": [{"name": "PIXELS", "data_type": "TYPE_FP32", "dims": [9, 9, 3]}]}, id="fp32"
        ),
        pytest.param({"input": [{"name": "ENCODED", "data_type": "TYPE_UINT8", "dims": [9, 9]}]}, id="dims"),
    ],
)
def test_other_tensors_than_files_and_pixels_are_refused(changed: dict) -> None:
    """They are named."""
    config = {
        "name": "image_decode",
        "max_batch_size": 8,
        "input": [{"name": "ENCODED", "data_type": "TYPE_UINT8", "dims": [-1]}],
        "output": [{"name": "PIXELS", "data_type": "TYPE_UINT8", "dims": [100, 100, 3]}],
    }
    DecodeStep(SERVED.parent, config, device_id=None).close()
    with pytest.raises(ServerError, match="image_decode: its tensors are"):
        DecodeStep(SERVED.parent, config | changed, device_id=None)


def test_a_serialised_pipeline_decodes_as_its_source(tmp_path: Path) -> None:
    """The native backend's first choice, `model.dali`."""
    source = Path("model_repository/image_decode/1/dali.py")
    choices = {"input_name": "ENCODED", "max_batch_size": 4, "num_threads": 1}
    from_source = Decoder(source, **choices)
    (tmp_path / "model.dali").write_bytes(from_source._pipeline.serialize())
    serialized = Decoder(tmp_path / "model.dali", **choices)
    image = np.frombuffer(next(kind.content for kind in image_kinds() if kind.name == "jpeg"), np.uint8)
    np.testing.assert_array_equal(from_source.decode([image])[0], serialized.decode([image])[0])


def test_gpu_operators_on_the_processor_are_an_error(tmp_path: Path) -> None:
    """As natively on a KIND_CPU instance; the reason is DALI's, in one line."""
    source = Path("model_repository/image_decode/1/dali.py").read_text()
    (tmp_path / "dali.py").write_text(source.replace('"mixed" if on_gpu else "cpu"', '"mixed"'))
    with pytest.raises(ServerError, match=r"dali\.py: the pipeline cannot be built"):
        decoder(tmp_path / "dali.py")


@pytest.mark.parametrize("size", [pytest.param((60_000, 1), id="wide"), pytest.param((1, 60_000), id="tall")])
def test_the_pipeline_itself_does_not_scale_a_strip_up(size: tuple[int, int]) -> None:
    """Where nothing checks before it: its short side scaled to 100 would make 6,000,000 columns or rows."""
    with pytest.raises(RuntimeError, match="placed out of bounds"):
        decoder()._run([np.frombuffer(encode(pattern(*size)), np.uint8)])


@pytest.mark.parametrize(
    ("size", "long_side"),
    [pytest.param((5000, 1), 500_000, id="wide"), pytest.param((1, 5000), 500_000, id="tall")],
)
def test_the_longest_strip_that_is_allowed_is_answered(size: tuple[int, int], long_side: int) -> None:
    """The limit of the pipeline is the contract's: `max_pixels` after the resize."""
    assert max(Preprocessing().resized_size(*size)) == long_side == Preprocessing().max_pixels // 100
    pixels = decoder()._run([np.frombuffer(encode(pattern(*size)), np.uint8)])
    assert pixels.shape == (1, 100, 100, 3)
