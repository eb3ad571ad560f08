from pathlib import Path

import numpy as np
import pytest

from fruitstand.contract import Preprocessing
from fruitstand.errors import ServerError
from fruitstand.images.synthetic import encode, pattern
from serving.attest.kinds import image_kinds
from serving.engine.decoder import Decoder
from serving.engine.pipeline import Pipeline, check_outputs

TWO_AND_TWO = """
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.triton import autoserialize

@autoserialize
@pipeline_def(
    batch_size=8, num_threads=1, device_id=None, output_dtype=[types.FLOAT, types.INT32], output_ndim=[1, 1]
)
def both():
    left = fn.external_source(device="cpu", name="LEFT", dtype=types.FLOAT, ndim=1)
    right = fn.external_source(device="cpu", name="RIGHT", dtype=types.FLOAT, ndim=1)
    return left - right, fn.cast(right, dtype=types.INT32)
"""


def outputs(*types: str) -> dict:
    """A configuration with these outputs."""
    named = [{"name": f"O{n}", "data_type": f"TYPE_{one}", "dims": [2]} for n, one in enumerate(types)]
    return {"name": "m", "output": named}


def test_inputs_go_by_name_and_outputs_by_order(tmp_path: Path) -> None:
    """Whatever the order in which the inputs are fed."""
    (tmp_path / "dali.py").write_text(TWO_AND_TWO)
    pipeline = Pipeline(tmp_path / "dali.py", max_batch_size=8)
    left, right = [np.float32([5, 7])], [np.float32([1, 2])]
    difference, whole = pipeline.run({"RIGHT": right, "LEFT": left})
    np.testing.assert_array_equal(difference, [[4, 5]])
    np.testing.assert_array_equal(whole, [[1, 2]])
    check_outputs(outputs("FP32", "INT32"), pipeline)
    with pytest.raises(ServerError, match="1 outputs configured, the pipeline has 2"):
        check_outputs(outputs("FP32"), pipeline)
    with pytest.raises(ServerError, match="O1 is float32, the pipeline's is int32"):
        check_outputs(outputs("FP32", "FP32"), pipeline)


def test_a_serialised_pipeline_decodes_as_its_source(tmp_path: Path) -> None:
    """The native backend's first choice, `model.dali`."""
    source = Path("model_repository/image_decode/1/dali.py")
    choices = {"input_name": "ENCODED", "max_batch_size": 4, "num_threads": 1}
    from_source = Decoder(source, **choices)
    (tmp_path / "model.dali").write_bytes(from_source.pipeline._pipeline.serialize())
    serialized = Decoder(tmp_path / "model.dali", **choices)
    image = np.frombuffer(next(kind.content for kind in image_kinds() if kind.name == "jpeg"), np.uint8)
    np.testing.assert_array_equal(from_source.decode([image])[0], serialized.decode([image])[0])


def test_gpu_operators_on_the_processor_are_an_error(tmp_path: Path) -> None:
    """As natively on a KIND_CPU instance; the reason is DALI's, in one line."""
    source = Path("model_repository/image_decode/1/dali.py").read_text()
    (tmp_path / "dali.py").write_text(source.replace('"mixed" if on_gpu else "cpu"', '"mixed"'))
    with pytest.raises(ServerError, match=r"dali\.py: the pipeline cannot be built"):
        Pipeline(tmp_path / "dali.py", max_batch_size=1)


@pytest.mark.parametrize("size", [pytest.param((60_000, 1), id="wide"), pytest.param((1, 60_000), id="tall")])
def test_the_pipeline_itself_does_not_scale_a_strip_up(size: tuple[int, int]) -> None:
    """Where nothing checks before it: its short side scaled to 100 would make 6,000,000 columns or rows."""
    pipeline = Pipeline(Path("model_repository/image_decode/1/dali.py"), max_batch_size=1)
    with pytest.raises(RuntimeError, match="placed out of bounds"):
        pipeline.run({"ENCODED": [np.frombuffer(encode(pattern(*size)), np.uint8)]})


@pytest.mark.parametrize(
    ("size", "long_side"),
    [pytest.param((5000, 1), 500_000, id="wide"), pytest.param((1, 5000), 500_000, id="tall")],
)
def test_the_longest_strip_that_is_allowed_is_answered(size: tuple[int, int], long_side: int) -> None:
    """The limit of the pipeline is the contract's: `max_pixels` after the resize."""
    assert max(Preprocessing().resized_size(*size)) == long_side == Preprocessing().max_pixels // 100
    pipeline = Pipeline(Path("model_repository/image_decode/1/dali.py"), max_batch_size=1)
    (pixels,) = pipeline.run({"ENCODED": [np.frombuffer(encode(pattern(*size)), np.uint8)]})
    assert pixels.shape == (1, 100, 100, 3)
