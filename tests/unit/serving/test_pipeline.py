from pathlib import Path

import numpy as np
import pytest

from fruitstand.errors import ServerError
from fruitstand.image_kinds import image_kinds
from serving.decoder import Decoder
from serving.pipeline import Pipeline, check_outputs

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
    (tmp_path / "dali.py").write_text(source.replace('"mixed" if GPU else "cpu"', '"mixed"'))
    with pytest.raises(ServerError, match=r"dali\.py: the pipeline cannot be built"):
        Pipeline(tmp_path / "dali.py", max_batch_size=1)
