"""Batches of any size, computed in a few sizes: the same answers, and no session meets another size."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from serving.onnx_session import open_session
from serving.sized import SizedSession
from tests.repositories import place_version
from tests.unit.serving.test_onnx_session import config, doubling_model


class Recording:
    """A session that notes the sizes it computes."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session, self.sizes = session, set[int]()

    def run(self, outputs, feeds, options=None):
        """As the session does."""
        self.sizes.add(len(feeds["X"]))
        return self.session.run(outputs, feeds, options)


@pytest.mark.parametrize(("max_batch_size", "expected"), [(64, [1, 8, 32, 64]), (8, [1, 8]), (1, [1])])
def test_each_session_meets_its_own_size_alone(
    max_batch_size: int, expected: list[int], tmp_path: Path
) -> None:
    """Small, large and full batches in turns; the answers in order, and none for what was filled up."""
    version = place_version(tmp_path / "repository", 1, doubling_model().SerializeToString())
    opened: list[Recording] = []

    def open_one() -> Recording:
        opened.append(Recording(open_session(version, config(), device_id=None)))
        return opened[-1]

    session = SizedSession(open_one, max_batch_size)
    session.warm_up(["Y"], {"X": np.ones((1, 3), np.float32)})
    for num_images in range(1, max_batch_size + 1):
        batch = np.random.default_rng(num_images).random((num_images, 3), np.float32)
        (answer,) = session.run(["Y"], {"X": batch})
        assert np.array_equal(answer, 2 * batch)
    assert [one.sizes for one in opened] == [{size} for size in expected]
