"""Batches of any size, computed in a few sizes: the same answers, and no session meets another size."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from serving.engine.onnx_session import open_session
from serving.engine.sized import SizedSession, plans_each_size
from tests.repositories import place_version
from tests.unit.serving.test_onnx_session import config, doubling_model


class Recording:
    """A session that notes the sizes it computes with."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session, self.sizes = session, set[int]()

    def run(self, outputs: Sequence[str], feeds: dict) -> list[np.ndarray]:
        """As the session does."""
        self.sizes.add(len(feeds["X"]))
        return self.session.run(outputs, feeds)


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """Of a model that doubles."""
    return place_version(tmp_path / "repository", 1, doubling_model().SerializeToString())


def sized(version: Path, max_batch_size: int) -> tuple[SizedSession, list[Recording]]:
    """The session, and what it opened."""
    opened: list[Recording] = []

    def open_one() -> Recording:
        opened.append(Recording(open_session(version, config(), device_id=None)))
        return opened[-1]

    return SizedSession(open_one(), open_one, max_batch_size), opened


@pytest.mark.parametrize(("max_batch_size", "expected"), [(64, [1, 8, 32, 64]), (8, [1, 8]), (2, [1, 2])])
def test_each_session_meets_its_own_size_alone(
    version: Path, max_batch_size: int, expected: list[int]
) -> None:
    """Small, large and full batches in turns; the answers in order, and none for what was filled up."""
    session, opened = sized(version, max_batch_size)
    session.warm_up(["Y"], {"X": np.ones((1, 3), np.float32)})
    for num_images in [*range(1, max_batch_size + 1), *range(max_batch_size, 0, -1)]:
        batch = np.random.default_rng(num_images).random((num_images, 3), np.float32)
        answer, again = session.run(["Y", "Y"], {"X": batch})
        assert np.array_equal(answer, 2 * batch)
        assert np.array_equal(again, answer)
    assert [one.sizes for one in opened] == [{size} for size in expected]


def test_a_too_large_batch_is_named(version: Path) -> None:
    """Whatever Triton promises."""
    session, _ = sized(version, 8)
    with pytest.raises(ValueError, match="9 images in a batch, allowed 8"):
        session.run(["Y"], {"X": np.ones((9, 3), np.float32)})


def test_cuda_alone_plans_each_size() -> None:
    """TensorRT has one engine for all, even with CUDA behind it."""
    for providers, expected in (
        (["CUDAExecutionProvider", "CPUExecutionProvider"], True),
        (["TensorrtExecutionProvider", "CUDAExecutionProvider"], False),
        (["CPUExecutionProvider"], False),
    ):
        assert plans_each_size(SimpleNamespace(get_providers=lambda names=providers: names)) is expected
