import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from fruitstand.contract import FRUIT_CLASSIFIER, FRUIT_RESNET, IMAGE, IMAGE_DECODE
from fruitstand.sample_images import encode, pattern
from serving.embedded import EmbeddedServer

QUEUE_SIZE = 16
SMALL = encode(pattern(100, 100))
SLOW = encode(pattern(3000, 2000), quality=90)
"""Takes the decoder long enough for others to queue up behind it."""


@pytest.fixture(scope="module")
def narrow(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The server with a short queue in front of its first step."""
    copy = shutil.copytree(repository, tmp_path_factory.mktemp("narrow") / "model_repository")
    config = copy / IMAGE_DECODE / "config.pbtxt"
    text = config.read_text()
    assert "max_queue_size: 1024" in text
    config.write_text(text.replace("max_queue_size: 1024", f"max_queue_size: {QUEUE_SIZE}"))
    with EmbeddedServer(copy, log_path=copy.parent / "triton.log") as running:
        yield running


class Calls:
    """Requests under way at once, with their outcomes."""

    def __init__(self, url: str) -> None:
        self.client = triton.InferenceServerClient(url)
        self.outcomes: list[str] = []
        self._all_there = threading.Condition()

    def send(self, content: bytes, **options: int) -> Any:
        """Start one request."""
        encoded = np.frombuffer(content, np.uint8)[None]
        tensor = triton.InferInput(IMAGE, list(encoded.shape), "UINT8")
        tensor.set_data_from_numpy(encoded)
        return self.client.async_infer(FRUIT_CLASSIFIER, [tensor], self._keep, **options)

    def _keep(self, result: triton.InferResult, error: Exception | None) -> None:
        with self._all_there:
            self.outcomes.append("answered" if error is None else f"{error.status()} {error.message()}")
            self._all_there.notify_all()

    def wait(self, count: int) -> Counter:
        """All outcomes, each within a minute."""
        with self._all_there:
            assert self._all_there.wait_for(lambda: len(self.outcomes) >= count, 60), self.outcomes
        return Counter(self.outcomes)

    def executed(self, model: str) -> int:
        """Images that a model has run so far."""
        return self.client.get_inference_statistics(model).model_stats[0].inference_count


@pytest.fixture
def calls(narrow: EmbeddedServer) -> Iterator[Calls]:
    """Requests to that server."""
    made = Calls(narrow.url)
    yield made
    made.client.close()


def test_a_burst_over_the_limit_is_refused_and_nothing_hangs(calls: Calls) -> None:
    """UNAVAILABLE for what does not fit; every request has its outcome, and the server goes on."""
    before = calls.executed(IMAGE_DECODE)
    for _ in range(8):
        calls.send(SLOW)
    for _ in range(300):
        calls.send(SMALL)
    outcomes = calls.wait(308)
    refused = [text for text in outcomes if text != "answered"]
    assert refused
    assert all("UNAVAILABLE" in text and "Exceeds maximum queue size" in text for text in refused)
    assert calls.executed(IMAGE_DECODE) - before == outcomes["answered"]
    calls.send(SMALL)
    assert calls.wait(309)["answered"] == outcomes["answered"] + 1


def test_a_deadline_that_passes_in_the_queue_costs_no_inference(calls: Calls) -> None:
    """A millisecond is over before the slow images in front are decoded."""
    before = {model: calls.executed(model) for model in (IMAGE_DECODE, FRUIT_RESNET)}
    for _ in range(4):
        calls.send(SLOW)
    time.sleep(0.05)  # until the decoder is at work on them
    for _ in range(8):
        calls.send(SMALL, timeout=1000)
    outcomes = calls.wait(12)
    expired = sum(count for text, count in outcomes.items() if "Request timeout expired" in text)
    assert expired > 0
    assert outcomes["answered"] + expired == 12
    for model, count in before.items():
        assert calls.executed(model) - count == outcomes["answered"]


def test_a_cancelled_request_costs_no_inference(calls: Calls) -> None:
    """Neither decode nor inference runs for what was cancelled while it waited."""
    before = {model: calls.executed(model) for model in (IMAGE_DECODE, FRUIT_RESNET)}
    for _ in range(6):
        calls.send(SLOW)
    time.sleep(0.05)
    waiting = [calls.send(SMALL) for _ in range(8)]
    for call in waiting:
        call.cancel()
    outcomes = calls.wait(14)
    cancelled = sum(count for text, count in outcomes.items() if "CANCELLED" in text)
    assert cancelled == 8
    calls.send(SMALL)  # behind them: once it is answered, they have had their turn
    calls.wait(15)
    for model, count in before.items():
        assert calls.executed(model) - count == 7
