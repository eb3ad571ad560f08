"""The queues in front of decoder and model, with both held so that nothing depends on speed."""

import contextlib
import fcntl
import re
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
from fruitstand.images.synthetic import encode, pattern
from fruitstand.network.connections import fetch_page, metric_total
from serving.host import build
from serving.triton import backend_directory
from serving.triton.embedded import EmbeddedServer
from tests.backends import num_workers, on_host, pending_metric, served_config

QUEUE_SIZE = 16
DEADLINE_US = 1_500_000
"""Long enough to be decoded in, on a busy machine too."""
SMALL = encode(pattern(100, 100))
DECODER_GATE, MODEL_GATE = "decoder_gate", "model_gate"
GATED_DECODER = """

import fcntl

from serving.engine.decoder import Decoder


def gated(self, encoded, decode=Decoder.decode):
    with open({gate!r}) as gate:
        fcntl.flock(gate, fcntl.LOCK_SH)
    return decode(self, encoded)


Decoder.decode = gated
"""
"""Ends the pipeline's file, as the next one the backend's.

A stopped process would do as well, but Triton gives it up after a second.
"""
GATED_MODEL = """

import fcntl


def gated(self, requests, execute=TritonPythonModel.execute):
    with open({gate!r}) as gate:
        fcntl.flock(gate, fcntl.LOCK_SH)
    return execute(self, requests)


TritonPythonModel.execute = gated
"""
NO_ROOM = "Exceeds maximum queue size"
EXPIRED = "Request timeout expired"


@pytest.fixture(scope="module")
def narrow(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The server with a short queue in front of its first step, in which nothing waits too long by itself."""
    copy = shutil.copytree(repository, tmp_path_factory.mktemp("narrow") / "model_repository")
    config = served_config(copy, IMAGE_DECODE)
    text = config.read_text()
    for key, old, new in (
        ("max_queue_size", 1024, QUEUE_SIZE),
        ("default_timeout_microseconds", 2_000_000, 60_000_000),
    ):
        written = re.compile(rf'({key}: |"{key}" value: {{ string_value: "){old}\b')
        text, changes = written.subn(rf"\g<1>{new}", text)
        assert changes == 1
    config.write_text(text)
    stubs = shutil.copytree(backend_directory.STUBS, copy.parent / "backends")
    for gate, path, text in (
        (DECODER_GATE, copy / IMAGE_DECODE / "1" / "dali.py", GATED_DECODER),
        (MODEL_GATE, stubs / "onnxruntime" / "model.py", GATED_MODEL),
    ):
        (copy / gate).touch()
        path.write_text(path.read_text() + text.format(gate=str(copy / gate)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend_directory, "STUBS", stubs)
        # The C++ backend has such a gate too, where it is compiled with it.
        patch.setenv(build.FLAGS_VARIABLE, "-DFRUITSTAND_GATE")
        patch.setenv("FRUITSTAND_GATE", str(copy / MODEL_GATE))
        with EmbeddedServer(copy, log_path=copy.parent / "triton.log") as running:
            yield running


@contextlib.contextmanager
def held(server: EmbeddedServer, name: str) -> Iterator[None]:
    """Nothing passes this gate in the block."""
    with (server.repositories[0] / name).open() as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        yield


def wait_for_a_waiter(server: EmbeddedServer, name: str) -> None:
    """Until somebody stands before a gate that is held."""
    inode = (server.repositories[0] / name).stat().st_ino
    deadline = time.monotonic() + 60
    while not re.search(rf"-> FLOCK .*:{inode} ", Path("/proc/locks").read_text()):
        assert time.monotonic() < deadline, "nobody came"
        time.sleep(0.01)


class Calls:
    """Requests under way at once, with their outcomes."""

    def __init__(self, url: str) -> None:
        self.client = triton.InferenceServerClient(url)
        self.sent: list[Any] = []
        self.outcomes: list[str] = []
        self._changed = threading.Condition()

    def send(self, **options: int) -> None:
        """Start one request."""
        encoded = np.frombuffer(SMALL, np.uint8)[None]
        tensor = triton.InferInput(IMAGE, list(encoded.shape), "UINT8")
        tensor.set_data_from_numpy(encoded)
        self.sent.append(self.client.async_infer(FRUIT_CLASSIFIER, [tensor], self._keep, **options))

    def send_until_one_is_turned_away(self, **options: int) -> None:
        """Then the queue is full, or it has dropped what waited too long."""
        with self._changed:
            while not self.outcomes:
                assert len(self.sent) < 300
                self.send(**options)
                self._changed.wait_for(lambda: self.outcomes, 0.02)

    def _keep(self, result: triton.InferResult, error: Exception | None) -> None:
        with self._changed:
            self.outcomes.append("answered" if error is None else f"{error.status()} {error.message()}")
            self._changed.notify_all()

    def count(self) -> Counter:
        """All outcomes, within a minute, and after the server's counters stand still."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.outcomes) == len(self.sent), 60), self.outcomes
        self.settle()
        return Counter(self.outcomes)

    def settle(self) -> None:
        """Wait until the counters stand still: Triton counts a request after it has answered it."""
        before, now = None, self._counters()
        while now != before:
            time.sleep(0.2)
            before, now = now, self._counters()

    def _counters(self) -> list[int]:
        return [self.executed(model) for model in (IMAGE_DECODE, FRUIT_RESNET)]

    def executed(self, model: str) -> int:
        """Images that a model has run so far."""
        return self.client.get_inference_statistics(model).model_stats[0].inference_count

    def wait_executed(self, model: str, count: int) -> None:
        """Until a model has run so many."""
        deadline = time.monotonic() + 20
        while self.executed(model) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def calls(narrow: EmbeddedServer) -> Iterator[Calls]:
    """Requests to that server."""
    made = Calls(narrow.url)
    made.settle()
    yield made
    made.client.close()


def total(outcomes: Counter, words: str) -> int:
    """How many outcomes have these words."""
    return sum(count for text, count in outcomes.items() if words in text)


def test_a_burst_over_the_limit_is_refused_and_nothing_hangs(narrow: EmbeddedServer, calls: Calls) -> None:
    """UNAVAILABLE for what does not fit; every request has its outcome, and the server goes on."""
    before = calls.executed(IMAGE_DECODE)
    with held(narrow, DECODER_GATE):
        calls.send_until_one_is_turned_away()
        for _ in range(20):
            calls.send()
    outcomes = calls.count()
    assert outcomes["answered"] >= QUEUE_SIZE
    assert total(outcomes, NO_ROOM) > 0
    assert all("UNAVAILABLE" in text and NO_ROOM in text for text in outcomes if text != "answered")
    assert calls.executed(IMAGE_DECODE) - before == outcomes["answered"]
    calls.send()
    assert calls.count()["answered"] == outcomes["answered"] + 1


def test_a_deadline_that_passes_in_the_queue_costs_no_inference(narrow: EmbeddedServer, calls: Calls) -> None:
    """A millisecond is over before the decoder goes on."""
    before = {model: calls.executed(model) for model in (IMAGE_DECODE, FRUIT_RESNET)}
    with held(narrow, DECODER_GATE):
        calls.send_until_one_is_turned_away(timeout=1000)
        time.sleep(0.01)  # longer than the deadline
    outcomes = calls.count()
    assert total(outcomes, EXPIRED) > 0
    assert outcomes["answered"] + total(outcomes, EXPIRED) + total(outcomes, NO_ROOM) == len(calls.sent)
    assert calls.executed(FRUIT_RESNET) - before[FRUIT_RESNET] == outcomes["answered"]
    # What the decoder held is decoded; the C++ backend then sees that its time does not suffice.
    decoded = calls.executed(IMAGE_DECODE) - before[IMAGE_DECODE]
    assert outcomes["answered"] <= decoded < total(outcomes, EXPIRED) + outcomes["answered"]


def test_a_deadline_that_passes_in_the_second_queue_costs_no_inference(
    narrow: EmbeddedServer, calls: Calls
) -> None:
    """Decoded in time, requests wait behind those that the model does not finish."""
    before = {model: calls.executed(model) for model in (IMAGE_DECODE, FRUIT_RESNET)}
    with held(narrow, MODEL_GATE):
        for number in range(num_workers()):
            calls.send()
            calls.wait_executed(IMAGE_DECODE, before[IMAGE_DECODE] + number + 1)
            time.sleep(0.1)  # longer than a batch waits for others: the model has it
        wait_for_a_waiter(narrow, MODEL_GATE)
        for _ in range(4):
            calls.send(timeout=DEADLINE_US)
        calls.wait_executed(IMAGE_DECODE, before[IMAGE_DECODE] + num_workers() + 4)
        time.sleep(1.2 * DEADLINE_US / 1e6)
    outcomes = calls.count()
    assert outcomes["answered"] == num_workers()
    assert total(outcomes, EXPIRED) == 4
    assert calls.executed(FRUIT_RESNET) - before[FRUIT_RESNET] == num_workers()


@pytest.mark.skipif(not on_host(), reason="Triton's batcher looks at deadlines only when an instance is free")
def test_a_deadline_is_told_while_the_model_is_busy(narrow: EmbeddedServer, calls: Calls) -> None:
    """Every worker is held; the queue's own timer answers what expires behind them."""
    before = calls.executed(IMAGE_DECODE)
    with held(narrow, MODEL_GATE):
        for number in range(num_workers()):
            calls.send()
            calls.wait_executed(IMAGE_DECODE, before + number + 1)
        for _ in range(4):
            calls.send(timeout=200_000)
        deadline = time.monotonic() + 20
        while len(calls.outcomes) < 4:
            assert time.monotonic() < deadline, calls.outcomes
            time.sleep(0.01)
        assert all(EXPIRED in text for text in calls.outcomes)
    assert calls.count()["answered"] == num_workers()


def test_waiting_requests_are_counted(narrow: EmbeddedServer, calls: Calls) -> None:
    """By a gauge of the embedded server's own backend, or by Triton's own for the stubs."""

    def num_waiting() -> float:
        page = fetch_page(narrow.metrics_url, timeout_s=10).decode()
        return metric_total(page, pending_metric(), model=IMAGE_DECODE, version="1")

    with held(narrow, DECODER_GATE):
        calls.send_until_one_is_turned_away()
        assert num_waiting() >= QUEUE_SIZE
    assert calls.count()["answered"] >= QUEUE_SIZE
    assert num_waiting() == 0


@pytest.mark.skipif(not on_host(), reason="Triton's own counters leave out who finds the queue full")
def test_requests_that_find_the_queue_full_are_counted(narrow: EmbeddedServer, calls: Calls) -> None:
    """In `fruitstand_dropped_requests_total`, which the rules read."""

    def num_dropped() -> float:
        page = fetch_page(narrow.metrics_url, timeout_s=10).decode()
        name = "fruitstand_dropped_requests_total"
        return metric_total(page, name, model=IMAGE_DECODE, version="1", reason="FULL")

    before = num_dropped()
    with held(narrow, DECODER_GATE):
        calls.send_until_one_is_turned_away()
    refused = total(calls.count(), NO_ROOM)
    assert num_dropped() - before == refused > 0


def test_a_cancelled_request_costs_no_inference(narrow: EmbeddedServer, calls: Calls) -> None:
    """What is cancelled while it waits, or while it is decoded, never reaches the classifier."""
    before = calls.executed(FRUIT_RESNET)
    with held(narrow, DECODER_GATE):
        calls.send_until_one_is_turned_away()
        for call in calls.sent:
            call.cancel()
        outcomes = calls.count()
        calls.client.is_server_live()  # on the same connection: the server has read what came before
        time.sleep(1)  # and its other thread has noted it
    assert total(outcomes, "CANCELLED") >= QUEUE_SIZE
    assert total(outcomes, "CANCELLED") + total(outcomes, NO_ROOM) == len(calls.sent)
    deadline, num_sent = time.monotonic() + 20, 0
    while not calls.count()["answered"]:  # behind them: once one is answered, they have had their turn
        assert time.monotonic() < deadline, calls.outcomes
        calls.send()
        num_sent += 1
        time.sleep(0.05)
    assert 1 <= calls.executed(FRUIT_RESNET) - before <= num_sent
