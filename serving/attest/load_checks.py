"""Checks under load: batching, the queue limit, deadlines and speed."""

import asyncio
import math
import re
import time

from fruitstand.contract import IMAGE, MAX_BATCH_SIZE
from fruitstand.images.synthetic import canary_image, encode, pattern
from serving.attest.caller import Answer, padded_batch
from serving.attest.promise import Reference, Subject
from serving.attest.report import Check, Speed, judged, not_seen

BATCH_ROUNDS = 3
BATCH_IN_FLIGHT = 64
DEFAULT_QUEUE = 1024
"""`max_queue_size` of the rendered configuration."""
BURST_OVER = 256
"""Requests beyond the limit. Several, because the server drains the queue while the burst arrives."""
BURST_QUEUE_US = (3_000_000, 12_000_000)
"""Queue timeout of the requests in the first burst, and in the second."""
HUNG_AFTER_S = 45.0
"""A request may wait in each step's queue, and again in some gateways."""
QUEUE_SIZE = re.compile(r"max_queue_size: *(\d+)")
FULL = re.compile("maximum queue size|reset reason: overflow")
"""Triton's message for a full queue, and Envoy's for too many calls in flight."""
SHED = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
BACKLOG = 24
"""Full requests sent ahead of those with a deadline."""
NUM_HURRIED = 8
HURRIED_QUEUE_US = 1_000
MAX_HURRIED_S = 0.5
"""A request that may wait 1 ms but is answered later than this was computed too late."""
LOADS = (1, 8, 64)
MIN_SHARE = 0.1
"""Share of this process's own images/s. Less means a fault, not slow hardware."""
MAX_LATENCY_FACTOR, LATENCY_SLACK_MS = 20.0, 100.0


async def check_batching(subject: Subject) -> Check:
    """Check that each step batches: 64 images of different file size take fewer than 64 executions."""
    expected = "fewer executions than images in every step, with images of different file size"
    before = await subject.counters()
    if before is None:
        return not_seen("batching", expected, "the server shows no statistics here")
    base = encode(pattern(100, 100))
    images = [base + bytes(number) for number in range(BATCH_IN_FLIGHT)]  # decoders ignore trailing bytes
    failed = []
    for _ in range(BATCH_ROUNDS):
        answers = await subject.server.classify_all(images, in_flight=BATCH_IN_FLIGHT)
        failed += [answer for answer in answers if not answer.ok]
    after = await subject.counters() or {}
    words, alone = [], []
    steps = [name for name, config in subject.configs.items() if not config.ensemble_scheduling.step]
    for model in steps or (subject.names.decode, subject.names.model):
        if model not in after or model not in before:
            continue
        grown = after[model] - before[model]
        words.append(f"{model}: {grown.num_images} images in {grown.num_executions} executions")
        if grown.num_executions >= grown.num_images:
            alone.append(model)
    if not words:
        return not_seen("batching", expected, "the statistics list none of the steps")
    return judged(
        "batching",
        ok=not alone and not failed,
        expected=expected,
        got="; ".join(words) + (f"; {len(failed)} failed, {failed[0]}" if failed else ""),
        advice="config.pbtxt lacks allow_ragged_batch or dynamic_batching: render the repository again",
    )


async def check_queue_limit(subject: Subject) -> Check:
    """Check that requests beyond the queue's limit are refused at once.

    On a busy machine the first requests may time out before the burst is complete, so that the queue never
    fills. Then a second burst follows, with longer timeouts.
    """
    limit = _queue_limit(subject)
    expected = f"{limit + BURST_OVER} full requests: those over the limit are refused at once, none hangs"
    for queue_us in BURST_QUEUE_US:
        answers = await _burst(subject, limit + BURST_OVER, queue_us)
        hung = [answer for answer in answers if answer.latency_s >= 0.95 * HUNG_AFTER_S]
        refused = [answer for answer in answers if answer.status in SHED and not answer.lost]
        full = [
            answer
            for answer in refused
            if FULL.search(answer.text) or answer.latency_s < 0.5 * BURST_QUEUE_US[0] / 1e6
        ]
        other = [answer for answer in answers if not answer.ok and answer not in refused]
        if full or hung or other or not refused:
            break
    num_ok = sum(answer.ok for answer in answers)
    got = f"{num_ok} answered, {len(full)} refused at once, {len(refused) - len(full)} after waiting"
    got += f", {len(hung)} hung"
    if full:
        got += f"; refused within {quantile_ms([one.latency_s for one in full], 0.99):.0f} ms (p99)"
    if not refused and num_ok == len(answers) and max(one.latency_s for one in answers) < queue_us / 1e6:
        return not_seen("queue_limit", expected, f"{got}: the server answers faster than this machine sends")
    if other:
        got += f"; {len(other)} otherwise, {other[0]}"
    return judged(
        "queue_limit",
        ok=bool(full) and not hung and not other,
        expected=expected,
        got=got,
        advice=f"{subject.names.decode}/config.pbtxt lacks max_queue_size: render the repository again",
    )


async def _burst(subject: Subject, count: int, queue_us: int) -> list[Answer]:
    """Send that many full requests at once, each with this queue timeout."""
    request = padded_batch([canary_image()] * MAX_BATCH_SIZE)
    options = {"timeout_s": HUNG_AFTER_S, "queue_timeout_us": queue_us}
    return await asyncio.gather(
        *(subject.server.infer(subject.names.classifier, IMAGE, request, **options) for _ in range(count))
    )


def _queue_limit(subject: Subject) -> int:
    """The largest `max_queue_size` in the repository, else the rendered default."""
    if subject.promise is not None:
        configs = subject.promise.repository.glob("*/config.pbtxt")
        limits = [int(number) for path in configs for number in QUEUE_SIZE.findall(path.read_text("utf-8"))]
        return max(limits, default=0) or DEFAULT_QUEUE
    return DEFAULT_QUEUE


async def check_deadline(subject: Subject) -> Check:
    """Check that requests with a 1 ms queue timeout are refused behind a backlog, not computed late."""
    expected = "a request that may wait 1 ms is refused behind a backlog"
    full = padded_batch([canary_image()] * MAX_BATCH_SIZE)
    backlog = [
        asyncio.create_task(subject.server.infer(subject.names.classifier, IMAGE, full))
        for _ in range(BACKLOG)
    ]
    await asyncio.sleep(0.05)
    images = [canary_image()] * NUM_HURRIED
    hurried = await asyncio.gather(
        *(subject.server.classify(image, queue_timeout_us=HURRIED_QUEUE_US) for image in images)
    )
    await asyncio.gather(*backlog)
    refused = [answer for answer in hurried if answer.status in SHED and not answer.lost]
    hung = [answer for answer in hurried if answer.latency_s >= 0.95 * subject.server.timeout_s]
    late = [answer for answer in hurried if answer.ok and answer.latency_s > MAX_HURRIED_S]
    other = [answer for answer in hurried if not answer.ok and answer not in refused]
    got = f"{len(refused)} of {NUM_HURRIED} refused, {len(late)} answered too late, {len(hung)} hung"
    if not (refused or late or hung or other):
        return not_seen("deadline", expected, f"{got}: the backlog was gone before any request waited")
    return judged(
        "deadline",
        ok=bool(refused) and not (late or hung or other),
        expected=expected,
        got=f"{got}; {other[0]}" if other else got,
        advice="config.pbtxt lacks a default_queue_policy with allow_timeout_override",
    )


async def check_speed(subject: Subject) -> Check:
    """Measure images/s and latency at 1, 8 and 64 in flight, and judge them. Sets `subject.speeds`."""
    images = [encode(pattern(100, 100, phase=0.7 * number)) for number in range(16)]
    seconds = 1.5 if subject.quick else 5.0
    subject.speeds = [await _closed_loop(subject, images, in_flight, seconds) for in_flight in LOADS]
    return judge_speed(subject.speeds, subject.reference, subject.min_throughput)


async def _closed_loop(subject: Subject, images: list[bytes], in_flight: int, seconds: float) -> Speed:
    latencies_s: list[float] = []
    failed = 0
    started = time.monotonic()

    async def caller(number: int) -> None:
        nonlocal failed
        while time.monotonic() - started < seconds:
            answer = await subject.server.classify(images[number % len(images)])
            number += 1
            if answer.ok:
                latencies_s.append(answer.latency_s)
            else:
                failed += 1

    await asyncio.gather(*map(caller, range(in_flight)))
    took_s = time.monotonic() - started
    return Speed(
        in_flight=in_flight,
        images_per_s=len(latencies_s) / took_s,
        p50_ms=quantile_ms(latencies_s, 0.5),
        p99_ms=quantile_ms(latencies_s, 0.99),
        failed=failed,
    )


def quantile_ms(seconds: list[float], share: float) -> float:
    """Quantile of latencies, seconds in and milliseconds out; NaN if there are none."""
    ordered = sorted(seconds)
    return 1e3 * ordered[int(share * (len(ordered) - 1))] if ordered else math.nan


def judge_speed(speeds: list[Speed], reference: Reference | None, min_throughput: float | None) -> Check:
    """Compare measured speed with the required one, or with this process's own decode and model.

    Args:
        speeds: one for each of `LOADS`.
        reference: this process's own speed; None without a repository.
        min_throughput: images/s required at 64 in flight; None requires a tenth of the reference's.
    """
    got = ", ".join(
        f"{one.in_flight}: {one.images_per_s:.0f} images/s p50 {one.p50_ms:.1f} p99 {one.p99_ms:.1f} ms"
        for one in speeds
    )
    failed = sum(one.failed for one in speeds)
    got += f"; {failed} failed" if failed else ""
    if min_throughput is None and reference is None:
        return not_seen("speed", "a speed to compare with", f"{got}; give --repository or --min-throughput")
    max_p50_ms = math.inf
    if min_throughput is None and reference is not None:
        min_throughput = MIN_SHARE * reference.images_per_s
        max_p50_ms = MAX_LATENCY_FACTOR * 1e3 * reference.image_s + LATENCY_SLACK_MS
    expected = f"at least {min_throughput:.0f} images/s at {LOADS[-1]} in flight"
    expected += f", p50 at most {max_p50_ms:.0f} ms at 1" if math.isfinite(max_p50_ms) else ""
    fast = speeds[-1].images_per_s >= (min_throughput or 0) and not speeds[0].p50_ms > max_p50_ms
    return judged(
        "speed",
        ok=fast and not failed,
        expected=expected,
        got=got,
        advice="slower than the hardware allows: 'fruitstand diagnose' names the slow step",
    )
