"""When images are due and sent, and what two runs have in common."""

import asyncio
import threading

import grpc
import numpy as np
import pytest

from fruitstand.errors import UsageError
from fruitstand.images.synthetic import encode, pattern
from fruitstand.sampling.recording import Recording
from scoring.model import Answer
from scoring.replay import due_times, send
from scoring.replay_report import Run, compare, render_page, summary
from tests.model_server import Received, model_server

IMAGE = encode(pattern(32, 32))


def recording(*arrived_s: float) -> Recording:
    """Images that arrived at these times."""
    return Recording(
        images=[IMAGE] * len(arrived_s),
        arrived_ns=(1_700_000_000_000_000_000 + np.array(arrived_s) * 1e9).astype(np.int64),
        num_passed=3 * len(arrived_s),
    )


@pytest.mark.parametrize(
    ("rate", "expected_s"),
    [
        pytest.param("recorded", [0, 1, 1.5, 6], id="recorded"),
        pytest.param("1", [0, 0.5, 0.75, 3], id="twice_as_fast"),
        pytest.param("0.25", [0, 2, 3, 12], id="half_as_fast"),
    ],
)
def test_a_rate_stretches_the_recorded_arrivals(rate: str, expected_s: list[float]) -> None:
    """Four images in six seconds; bursts stay bursts."""
    due_s = due_times(recording(5, 6, 6.5, 11), rate)
    assert due_s == pytest.approx(expected_s, abs=1e-6)


def test_images_that_came_together_are_spread_evenly() -> None:
    """Their own distances say nothing."""
    assert due_times(recording(5, 5, 5), "4") == pytest.approx([0, 0.25, 0.5])
    assert due_times(recording(5, 5, 5), "recorded") == pytest.approx([0, 0, 0])
    assert due_times(recording(5, 6), "max") is None


@pytest.mark.parametrize("rate", ["0", "-3", "fast", "inf", "nan"])
def test_another_rate_is_refused(rate: str) -> None:
    """In one line that names the allowed ones."""
    with pytest.raises(UsageError, match=r"--rate: got .* allowed recorded, max, or images/s"):
        due_times(recording(0, 1), rate)


def test_images_are_sent_when_due_whether_earlier_ones_are_answered_or_not() -> None:
    """The server answers nothing before it has four requests at once: only an open loop gets there."""
    images = [encode(pattern(32, 32, phase=number)) for number in range(4)]
    four = threading.Barrier(4)

    def behave(received: Received, context: grpc.ServicerContext) -> None:
        if received.images != images[:1] or warmed_up.is_set():
            four.wait(timeout=30)
        warmed_up.set()

    warmed_up = threading.Event()
    due_s = np.array([0, 0.05, 0.1, 0.3])
    with model_server(behave) as server:
        run = asyncio.run(send(server.url, images, due_s, description="replay"))
    assert sorted(one.images for one in server.received[1:]) == sorted([image] for image in images)
    assert [one.labels for one in run.answers if not isinstance(one, str)] == [
        [str(len(one))] for one in images
    ]
    assert min(run.late_ms) >= 0
    assert run.duration_s >= 0.3 - 0.001 * max(run.late_ms)


def answers(*pairs: tuple[str, float] | str) -> Run:
    """A run with these top classes, or reasons why there is none."""
    return Run(
        answers=[one if isinstance(one, str) else Answer([one[0]], [one[1]]) for one in pairs], duration_s=2.0
    )


def test_flips_are_counted_by_the_old_versions_class() -> None:
    """What only one version answers is not compared."""
    old = answers(("Apple", 0.9), ("Apple", 0.8), ("Pear", 0.7), ("Fig", 0.6), "too large")
    new = answers(("Apple", 0.8), ("Pear", 0.5), ("Pear", 0.9), "overloaded", ("Fig", 0.6))
    result = compare(1, old, 2, new, recording=recording(0, 1, 2, 3, 4), rate=None)
    assert (result.num_images, result.num_compared, result.num_flips) == (5, 3, 1)
    assert result.flip_share == pytest.approx(1 / 3)
    apple, pear = result.classes
    assert (apple.label, apple.num_images, apple.num_flips, apple.now) == ("Apple", 2, 1, {"Pear": 1})
    assert apple.mean_confidence_shift == pytest.approx(-0.2)
    assert (pear.num_flips, pear.mean_confidence_shift) == (0, pytest.approx(0.2))
    (flip,) = result.flips
    assert (flip.index, flip.old, flip.new) == (1, "Apple", "Pear")
    assert (result.old.num_unanswered, result.new.num_unanswered) == (1, 1)
    assert result.traffic_images_per_s == pytest.approx(15 / 4)
    assert "1 of 3 answers differ (33.33%)" in summary(result)[0]
    assert "Apple: 1 of 2, now Pear 1" in summary(result)[1]


def test_the_page_shows_the_flipped_images_and_escapes_labels() -> None:
    """One picture, inside the page; no markup of a class name comes through."""
    old, new = answers(("<b>", 0.9), ("Fig", 0.8)), answers(("Fig", 0.6), ("Fig", 0.9))
    result = compare(3, old, 4, new, recording=recording(0, 1), rate="recorded")
    page = render_page(result, [IMAGE, IMAGE])
    assert page.count("data:image/jpeg;base64,") == 1
    assert "<b>" not in page
    assert "&lt;b&gt; 0.90" in page
    assert "Version 4 against 3" in page
