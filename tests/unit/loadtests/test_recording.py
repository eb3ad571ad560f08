import random

import numpy as np
import pytest

from loadtests.recording import ANSWERED, MISSED, REJECTED, Recording


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
