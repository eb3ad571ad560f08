"""A batch divided among threads: every image once, in order, and the same answer."""

import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from serving.engine.division import MAX_PART, MIN_PART, DividedSession, divide
from serving.engine.onnx_session import open_session
from tests.repositories import place_version
from tests.unit.serving.test_onnx_session import accelerators, config, doubling_model


@pytest.mark.parametrize("num_threads", [1, 2, 3, 16])
def test_the_parts_are_the_batch_and_nearly_equal(num_threads: int) -> None:
    """No image twice, none left out; as many parts for each thread, none too small or too large."""
    for num_images in range(1, 65):
        parts = divide(num_images, num_threads)
        assert np.concatenate([np.arange(64)[part] for part in parts]).tolist() == list(range(num_images))
        if len(parts) > 1:
            sizes = [part.stop - part.start for part in parts]
            assert max(sizes) - min(sizes) <= 1
            assert min(sizes) >= MIN_PART
            assert max(sizes) <= MAX_PART
            assert len(parts) % num_threads == 0
        else:
            assert num_threads == 1 or num_images < MIN_PART * num_threads


@pytest.mark.parametrize("engine", ["", "openvino"])
def test_a_divided_batch_has_the_answers_of_a_whole_one(engine: str, tmp_path: Path) -> None:
    """In order, whichever thread is done first; small and large batches from several callers at once."""
    if engine and "OpenVINOExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("the installed onnxruntime has no OpenVINO")
    version = place_version(tmp_path / "repository", 1, doubling_model().SerializeToString())
    settings = config(optimization=accelerators("cpu", engine)) if engine else config()
    whole, parts = (
        open_session(version, settings, device_id=None, num_threads=2, callers=callers) for callers in (1, 2)
    )
    session, wrong = DividedSession(whole, parts, 2), []
    session.warm_up(["Y"], {"X": np.zeros((1, 3), np.float32)})

    def compute() -> None:
        for num_images in (1, 15, 16, 17, 64, 100):
            batch = np.random.default_rng(num_images).random((num_images, 3), np.float32)
            (answer,) = session.run(["Y"], {"X": batch})
            wrong.extend([num_images] if not np.array_equal(answer, 2 * batch) else [])

    callers = [threading.Thread(target=compute) for _ in range(3)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    assert wrong == []


def test_small_batches_are_warm() -> None:
    """Few callers do not wait while an engine compiles for a size that it has not met."""

    class Seen:
        def __init__(self) -> None:
            self.sizes: list[int] = []

        def run(self, outputs: list[str], feeds: dict[str, np.ndarray], options: object = None) -> list:
            self.sizes.append(len(feeds["X"]))
            return [feeds["X"]]

    for num_threads in (1, 2):
        whole = Seen()
        parts = Seen() if num_threads > 1 else whole
        session = DividedSession(whole, parts, num_threads)  # type: ignore[arg-type]
        session.warm_up(["Y"], {"X": np.zeros((1, 3), np.float32)})
        warm = set(whole.sizes)
        for num_images in range(1, MIN_PART):
            session.run(["Y"], {"X": np.zeros((num_images, 3), np.float32)})
        assert set(whole.sizes) == warm
