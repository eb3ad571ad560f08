"""Callers of a served model: one call, and calls without pause."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

from fruitstand.contract import FRUIT_CLASSIFIER, IMAGE, PROBABILITIES
from serving.triton.embedded import EmbeddedServer


def padded_batch(paths: list[Path]) -> np.ndarray:
    """Files as one request: zero-padded to the longest."""
    files = [path.read_bytes() for path in paths]
    rows = np.zeros((len(files), max(map(len, files))), np.uint8)
    for row, content in zip(rows, files, strict=True):
        row[: len(content)] = np.frombuffer(content, np.uint8)
    return rows


def ask(
    client: triton.InferenceServerClient, batch: np.ndarray, model: str = FRUIT_CLASSIFIER
) -> tuple[int, np.ndarray]:
    """The version that answers, and its probabilities."""
    tensor = triton.InferInput(IMAGE, list(batch.shape), "UINT8")
    tensor.set_data_from_numpy(batch)
    result = client.infer(model, [tensor])
    return int(result.get_response().model_version), result.as_numpy(PROBABILITIES)


def ask_once(server: EmbeddedServer, batch: np.ndarray) -> tuple[int, np.ndarray]:
    """The same, over a connection of its own."""
    client = triton.InferenceServerClient(server.url)
    try:
        return ask(client, batch)
    finally:
        client.close()


@dataclass(frozen=True)
class Answer:
    """To one call, with when it was sent and when it came, seconds on the monotonic clock."""

    sent: float
    came: float
    version: int
    probabilities: np.ndarray


class Caller:
    """Asks again and again, without pause."""

    def __init__(self, server: EmbeddedServer, batch: np.ndarray, model: str = FRUIT_CLASSIFIER) -> None:
        self.answers: list[Answer] = []
        self.failures: list[str] = []
        self._server, self._batch, self._model = server, batch, model
        self._stop, self._answered = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Caller":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for_an_answer(self) -> None:
        """To a call that is under way, or to the next."""
        self._answered.clear()
        assert self._answered.wait(60), self.failures

    def _ask(self) -> None:
        client = triton.InferenceServerClient(self._server.url)
        while not self._stop.is_set():
            sent = time.monotonic()
            try:
                version, probabilities = ask(client, self._batch, self._model)
                self.answers.append(Answer(sent, time.monotonic(), version, probabilities))
                self._answered.set()
            except Exception as exc:  # whatever it is, it is what these tests are about
                self.failures.append(repr(exc))
        client.close()
