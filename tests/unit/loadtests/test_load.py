"""The open-loop load and its ledger, against a real gRPC server that misbehaves as told."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, pairwise

import grpc
import pytest

from fruitstand.errors import UsageError
from fruitstand.images.synthetic import encode, pattern
from fruitstand.network.tls import Tls
from fruitstand_client.prediction import Prediction
from tests.model_server import Received, model_server
from tests.nightly.chaos.load import Load, capacity
from tests.nightly.chaos.malformed import MalformedLoad

SMALL, LARGE = encode(pattern(20, 20)), encode(pattern(60, 60))


@dataclass
class Callee:
    """What a load needs of a stack."""

    url: str
    tls: Tls | None = None
    api_key: str | None = None
    answered: int = 0
    given_up: int = 0


def test_calls_are_sent_when_they_are_due_and_all_of_them_are_counted() -> None:
    """The server's own count is the ledger's; answers and failures are told apart."""
    numbers = count(1)

    def refuse_every_third(received: Received, context: grpc.ServicerContext) -> None:
        if next(numbers) % 3 == 0:
            context.abort(grpc.StatusCode.INTERNAL, "every third one")

    with model_server(refuse_every_third) as server:
        callee = Callee(server.url)
        with Load(callee, [[SMALL], [LARGE]], rate=50) as load:
            time.sleep(1)
        assert len(server.received) == load.ledger.attempts == len(load.ledger.records)
    assert 30 <= len(load.ledger.records) <= 60
    assert load.ledger.failed == load.ledger.statuses["INTERNAL"] == len(load.ledger.records) // 3
    assert callee.answered == load.ledger.statuses["OK"]
    assert {one.version for one in load.ledger.records} == {"7", ""}
    due = [one.due for one in sorted(load.ledger.records, key=lambda one: one.due)]
    assert all(0.019 < later - earlier < 0.021 for earlier, later in pairwise(due))


def test_a_slow_server_delays_no_later_call() -> None:
    """Open loop: each answer takes half a second, and calls go on being sent."""
    with model_server(lambda received, context: time.sleep(0.5)) as server:
        with Load(Callee(server.url), [[SMALL]], rate=20) as load:
            time.sleep(0.5)
        starts = [one.sent for one in load.ledger.records]
    assert len(starts) >= 8
    assert max(starts) - min(starts) < 0.6
    assert load.ledger.failed == 0


def test_a_wrong_answer_is_found() -> None:
    """By what the caller knows of each request."""

    def check(position: int, answers: Sequence[Prediction]) -> str | None:
        return None if answers[0].label == str(len([SMALL, LARGE][position])) else "wrong"

    with model_server() as server:
        with Load(Callee(server.url), [[SMALL], [LARGE]], rate=50, check=check) as right:
            time.sleep(0.3)
        with Load(Callee(server.url), [[SMALL], [SMALL]], rate=50, check=check) as wrong:
            time.sleep(0.3)
    assert right.ledger.wrong == []
    assert 0 < len(wrong.ledger.wrong) < len(wrong.ledger.records)


def test_a_load_that_could_not_be_sent_is_an_error_of_its_own() -> None:
    """Not a scenario in which no call failed."""
    with pytest.raises(UsageError), Load(Callee("no address"), [[SMALL]], rate=50):
        time.sleep(0.1)


def test_capacity_is_what_a_closed_loop_gets() -> None:
    """Four at once, a tenth of a second each: forty a second."""
    with model_server(lambda received, context: time.sleep(0.1)) as server:
        assert 15 < capacity(Callee(server.url), [[SMALL]], seconds=1, in_flight=4) < 45


def test_malformed_requests_are_all_sent_and_counted() -> None:
    """Over several connections, to the last one."""
    with model_server() as server:
        callee = Callee(server.url)
        load = MalformedLoad(callee, 200, seed=3)
        load.send()
    assert sum(load.statuses.values()) == 200
    assert callee.answered == load.statuses["OK"]
