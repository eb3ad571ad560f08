import random

import numpy as np
import pytest

from fruitstand_client.errors import translate
from loadtests.generator.recording import ANSWERED, FAILED, MISSED, REJECTED, Recording, outcome_of


def test_percentiles_are_within_one_percent_of_the_true_ones() -> None:
    """Though only counts of buckets are kept."""
    draw = random.Random(0)
    latencies = [draw.lognormvariate(3, 1) for _ in range(5000)]
    recording = Recording()
    for latency in latencies:
        recording.record(ANSWERED, request_batch=1, latency_ms=latency)
    for percent in (50, 95, 99):
        true = float(np.percentile(latencies, percent, method="inverted_cdf"))
        assert recording.total().percentile_ms(percent) == pytest.approx(true, rel=0.0101)


def test_what_workers_send_adds_up() -> None:
    """And a worker that has reported and forgotten does not report twice."""
    master, worker = Recording(), Recording()
    for outcome in (ANSWERED, ANSWERED, REJECTED, MISSED):
        worker.record(outcome, request_batch=8, latency_ms=5)
    worker.health.append((1.0, 0.5, 2.0))
    sent = worker.to_dict()
    worker.clear()
    master.add(Recording.from_dict(sent))
    master.add(Recording.from_dict(worker.to_dict()))
    assert master.total().outcomes == {ANSWERED: 2, REJECTED: 1, MISSED: 1}
    assert master.total().num_images == 16
    assert master.health == [(1.0, 0.5, 2.0)]


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        ("UNAVAILABLE", "Exceeds maximum queue size", REJECTED),
        ("UNAVAILABLE", "upstream connect error or disconnect/reset before headers: overflow", REJECTED),
        ("RESOURCE_EXHAUSTED", "", REJECTED),
        ("UNAVAILABLE", "no healthy upstream", FAILED),
        ("UNAVAILABLE", "Request timeout expired", MISSED),
        ("DEADLINE_EXCEEDED", "", MISSED),
        ("UNAVAILABLE", "connection refused", FAILED),
        ("INTERNAL", "", FAILED),
    ],
)
def test_only_a_refusal_is_one(status: str, text: str, expected: str) -> None:
    """A server that is gone, and a queue that takes too long, are not the server's choice."""
    assert outcome_of(translate(status, text, "a:1")) == expected
    assert outcome_of(None) == ANSWERED
