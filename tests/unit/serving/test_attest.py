"""Parts of `fruitstand attest` that need no server: how figures, versions and texts are judged."""

import json
from pathlib import Path

import pytest

from serving.attest.caller import Answer
from serving.attest.exposure_checks import judge_version
from serving.attest.input_checks import LEAKS
from serving.attest.load_checks import judge_speed
from serving.attest.report import Check, Report, Speed, Status


def check(status: Status) -> Check:
    """A line with that status."""
    return Check(name=str(status), status=status, expected="a | b", got="two\nlines", advice="look")


def report(*statuses: Status) -> Report:
    """With a line for each."""
    return Report(
        url="127.0.0.1:8001",
        time="2026-11-28T00:00:00+00:00",
        seconds=1.0,
        quick=True,
        fruitstand_version="0",
        server={"name": "triton", "version": "2.75.0"},
        model_version=1,
        speeds=(Speed(in_flight=1, images_per_s=10, p50_ms=float("nan"), p99_ms=2.0, failed=0),),
        hardware={},
        checks=tuple(map(check, statuses)),
    )


@pytest.mark.parametrize(
    ("statuses", "passes", "passes_strictly"),
    [
        pytest.param((Status.PASSED, Status.NOT_SEEN), True, True, id="not_seen_is_no_failure"),
        pytest.param((Status.PASSED, Status.WARNING), True, False, id="a_warning_fails_only_strictly"),
        pytest.param((Status.WARNING, Status.FAILED), False, False, id="a_failure_fails"),
    ],
)
def test_only_failures_fail_a_report(
    statuses: tuple[Status, ...], passes: bool, passes_strictly: bool
) -> None:
    """With --strict warnings do, too."""
    made = report(*statuses)
    assert (made.passed(), made.passed(strict=True)) == (passes, passes_strictly)


def test_a_report_is_written_as_json_and_as_a_table(tmp_path: Path) -> None:
    """A figure without a measurement is null, and no text breaks the table."""
    report(Status.PASSED, Status.FAILED).write(tmp_path)
    document = json.loads((tmp_path / "attest.json").read_text())
    assert document["counts"] == {"passed": 1, "failed": 1, "warning": 0, "not seen": 0}
    assert document["speed"][0]["p50_ms"] is None
    assert "| failed | failed | a \\| b | two lines | look |" in (tmp_path / "attest.md").read_text()


@pytest.mark.parametrize(
    ("name", "version", "is_shielded", "status"),
    [
        pytest.param("triton", "2.75.0", False, Status.PASSED, id="the_minimum"),
        pytest.param("triton", "2.100.0", False, Status.PASSED, id="newer"),
        pytest.param("triton", "2.74.9", True, Status.FAILED, id="older"),
        pytest.param("triton", "2.51.0", True, Status.WARNING, id="embedded_on_loopback"),
        pytest.param("triton", "2.51.0", False, Status.FAILED, id="embedded_for_strangers"),
        pytest.param("triton", "nightly", True, Status.NOT_SEEN, id="no_number"),
        pytest.param("OpenVINO Model Server", "2026.1", True, Status.NOT_SEEN, id="another_server"),
    ],
)
def test_a_server_is_judged_by_its_version(
    name: str, version: str, is_shielded: bool, status: Status
) -> None:
    """What mends the batcher's use-after-free is the minimum; the wheel's old server is for this machine."""
    assert judge_version(name, version, is_shielded=is_shielded).status == status


def speeds(images_per_s: float, p50_ms: float) -> list[Speed]:
    """At 1 and 64 in flight."""
    return [
        Speed(in_flight=1, images_per_s=5, p50_ms=p50_ms, p99_ms=p50_ms, failed=0),
        Speed(in_flight=64, images_per_s=images_per_s, p50_ms=p50_ms, p99_ms=p50_ms, failed=0),
    ]


def test_speed_is_held_against_what_was_asked_for() -> None:
    """Without a repository and without a figure nothing is judged."""
    assert judge_speed(speeds(100, 5), None, 100).status == Status.PASSED
    assert judge_speed(speeds(99, 5), None, 100).status == Status.FAILED
    assert judge_speed(speeds(99, 5), None, None).status == Status.NOT_SEEN


@pytest.mark.parametrize(
    ("text", "is_lost"),
    [
        pytest.param("failed to connect to all addresses; last error: ...", True, id="nobody_listens"),
        pytest.param("recvmsg:Connection reset by peer", True, id="the_server_ended"),
        pytest.param("Socket closed", True, id="closed"),
        pytest.param("[request id: <id_unknown>] Exceeds maximum queue size", False, id="a_full_queue"),
        pytest.param("Request timeout expired", False, id="waited_too_long"),
        pytest.param("upstream connect error or disconnect: overflow", False, id="the_gateway_is_full"),
    ],
)
def test_a_server_that_is_gone_has_refused_nothing(text: str, is_lost: bool) -> None:
    """A full queue and a dead server are both UNAVAILABLE."""
    assert Answer(status="UNAVAILABLE", text=text, latency_s=0.01).lost is is_lost


@pytest.mark.parametrize(
    ("text", "leak"),
    [
        pytest.param("cannot open /models/fruit_resnet/1/model.onnx", "a path", id="path"),
        pytest.param('Assert on "!empty" failed: decoder.cc:612', "a stack trace", id="source_line"),
        pytest.param("Stacktrace (9 entries):", "a stack trace", id="stack"),
        pytest.param("Failed to open region /dev/shm/x", "a shared-memory name", id="region"),
        pytest.param("unsupported format: HEIC, AVIF", None, id="a_reason"),
        pytest.param("image 1 of 2: too many pixels: 20000x20000", None, id="numbers"),
        pytest.param("unexpected inference input 'X' for model 'fruit_classifier'", None, id="tritons_words"),
    ],
)
def test_error_texts_that_tell_of_the_inside_are_found(text: str, leak: str | None) -> None:
    """Reasons are not."""
    found = {what for what, pattern in LEAKS.items() if pattern.search(text)}
    assert (leak in found) if leak else not found
