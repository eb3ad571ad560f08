"""What happens under load? Batches, the queue's limit, deadlines, and a short speed figure."""

import asyncio
import math
import re
import time
from dataclasses import asdict, dataclass

from fruitstand.contract import FRUIT_CLASSIFIER, FRUIT_RESNET, IMAGE, IMAGE_DECODE, MAX_BATCH_SIZE
from fruitstand.images.synthetic import canary_image, encode, pattern
from serving.attest.caller import Answer, padded_batch
from serving.attest.check import Check, judged, not_seen
from serving.attest.promise import Reference, Subject

BATCH_ROUNDS = 3
BATCH_IN_FLIGHT = 64
DEFAULT_QUEUE = 1024
"""`max_queue_size` of the rendered configuration."""
BURST_OVER = 256
"""Requests beyond the limit: what is computed meanwhile makes room for some."""
BURST_QUEUE_US = (3_000_000, 12_000_000)
"""How long each request of a first burst may wait, and of a second one."""
HUNG_AFTER_S = 45.0
"""It may wait in each step's queue, and in front of some gateways as often again."""
QUEUE_SIZE = re.compile(r"max_queue_size: *(\d+)")
FULL = re.compile("maximum queue size|reset reason: overflow")
"""Triton's words for a full queue, and Envoy's for as many calls in flight as it lets in."""
SHED = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
BACKLOG = 24
"""Requests of 64 images in front of those with a deadline."""
NUM_HURRIED = 8
HURRIED_QUEUE_US = 1_000
MAX_HURRIED_S = 0.5
"""An answer after so long, though it may wait 1 ms, was computed in vain."""
LOADS = (1, 8, 64)
MIN_SHARE = 0.1
"""Of what this process computes by itself, images/s: below it something is broken, not slow hardware."""
MAX_LATENCY_FACTOR, LATENCY_SLACK_MS = 20.0, 100.0


async def check_batching(subject: Subject) -> Check:
    """64 images of different length at once: each step computes them in fewer executions."""
    expected = "fewer executions than images in every step, with images of different length"
    before = await subject.counters()
    if before is None:
        return not_seen("batching", expected, "cannot see: the server shows no statistics here")
    base = encode(pattern(100, 100))
    images = [base + bytes(number) for number in range(BATCH_IN_FLIGHT)]  # what follows the end is ignored
    failed = []
    for _ in range(BATCH_ROUNDS):
        answers = await subject.server.classify_all(images, in_flight=BATCH_IN_FLIGHT)
        failed += [answer for answer in answers if not answer.ok]
    after = await subject.counters() or {}
    words, alone = [], []
    steps = [name for name, config in subject.configs.items() if not config.ensemble_scheduling.step]
    for model in steps or (IMAGE_DECODE, FRUIT_RESNET):
        if model not in after or model not in before:
            continue
        grown = after[model] - before[model]
        words.append(f"{model}: {grown.num_images} images in {grown.num_executions} executions")
        if grown.num_executions >= grown.num_images:
            alone.append(model)
    if not words:
        return not_seen("batching", expected, "the statistics name no step")
    return judged(
        "batching",
        ok=not alone and not failed,
        expected=expected,
        got="; ".join(words) + (f"; {len(failed)} failed, {failed[0]}" if failed else ""),
        advice="allow_ragged_batch and dynamic_batching belong in config.pbtxt: render it again",
    )


async def check_queue_limit(subject: Subject) -> Check:
    """More requests than the queue takes, at once: those over the limit are refused without waiting.

    A busy machine may take longer to send a burst than its requests wait: then none finds the queue full, and
    the burst is sent once more, with requests that wait longer.
    """
    limit = _queue_limit(subject)
    expected = (
        f"of {limit + BURST_OVER} full requests at once those over the limit refused at once, none hanging"
    )
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
        return not_seen("queue_limit", expected, f"{got}: this server answers faster than this machine sends")
    if other:
        got += f"; {len(other)} otherwise, {other[0]}"
    return judged(
        "queue_limit",
        ok=bool(full) and not hung and not other,
        expected=expected,
        got=got,
        advice="max_queue_size belongs in image_decode/config.pbtxt: render the repository again",
    )


async def _burst(subject: Subject, count: int, queue_us: int) -> list[Answer]:
    """Answers to that many full requests, sent at once, each of which may wait so long."""
    request = padded_batch([canary_image()] * MAX_BATCH_SIZE)
    calls = (
        subject.server.infer(
            FRUIT_CLASSIFIER, IMAGE, request, timeout_s=HUNG_AFTER_S, queue_timeout_us=queue_us
        )
        for _ in range(count)
    )
    return await asyncio.gather(*calls)


def _queue_limit(subject: Subject) -> int:
    """The repository's, else the rendered default."""
    if subject.promise is not None:
        configs = subject.promise.repository.glob("*/config.pbtxt")
        limits = [int(number) for path in configs for number in QUEUE_SIZE.findall(path.read_text("utf-8"))]
        return max(limits, default=0) or DEFAULT_QUEUE
    return DEFAULT_QUEUE


async def check_deadline(subject: Subject) -> Check:
    """Requests that may wait 1 ms in the queue, behind a backlog: refused, not hanging, not computed late."""
    expected = "behind a backlog a request that may wait 1 ms is refused"
    full = padded_batch([canary_image()] * MAX_BATCH_SIZE)
    backlog = [
        asyncio.create_task(subject.server.infer(FRUIT_CLASSIFIER, IMAGE, full)) for _ in range(BACKLOG)
    ]
    await asyncio.sleep(0.05)
    hurried = await asyncio.gather(
        *(
            subject.server.classify(canary_image(), queue_timeout_us=HURRIED_QUEUE_US)
            for _ in range(NUM_HURRIED)
        )
    )
    await asyncio.gather(*backlog)
    refused = [answer for answer in hurried if answer.status in SHED and not answer.lost]
    hung = [answer for answer in hurried if answer.latency_s >= 0.95 * subject.server.timeout_s]
    late = [answer for answer in hurried if answer.ok and answer.latency_s > MAX_HURRIED_S]
    other = [answer for answer in hurried if not answer.ok and answer not in refused]
    got = f"{len(refused)} of {NUM_HURRIED} refused, {len(late)} answered too late, {len(hung)} hung"
    if not (refused or late or hung or other):
        return not_seen("deadline", expected, f"{got}: the backlog is gone before anything waits")
    return judged(
        "deadline",
        ok=bool(refused) and not (late or hung or other),
        expected=expected,
        got=f"{got}; {other[0]}" if other else got,
        advice="default_queue_policy with allow_timeout_override belongs in config.pbtxt",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """A closed loop of single-image requests."""

    in_flight: int
    images_per_s: float
    p50_ms: float
    p99_ms: float
    failed: int

    def to_json(self) -> dict[str, float | None]:
        """Rounded; without an answer there is no latency."""
        values = asdict(self).items()
        return {key: round(value, 2) if math.isfinite(value) else None for key, value in values}


async def measure_speed(subject: Subject) -> list[Speed]:
    """Images/s and latencies at 1, 8 and 64 in flight, for some seconds each."""
    images = [encode(pattern(100, 100, phase=0.7 * number)) for number in range(16)]
    seconds = 1.5 if subject.quick else 5.0
    return [await _closed_loop(subject, images, in_flight, seconds) for in_flight in LOADS]


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
    """A quantile of latencies in seconds, as milliseconds; NaN without any."""
    ordered = sorted(seconds)
    return 1e3 * ordered[int(share * (len(ordered) - 1))] if ordered else math.nan


def judge_speed(speeds: list[Speed], reference: Reference | None, min_throughput: float | None) -> Check:
    """Hold the figures against what was asked for, else against this process's own decode and model.

    Args:
        speeds: at each number in flight.
        reference: this process's own figures; None without a repository.
        min_throughput: images/s at 64 in flight; None takes a tenth of this process's own.
    """
    got = ", ".join(
        f"{one.in_flight}: {one.images_per_s:.0f} images/s p50 {one.p50_ms:.1f} p99 {one.p99_ms:.1f} ms"
        for one in speeds
    )
    failed = sum(one.failed for one in speeds)
    got += f"; {failed} failed" if failed else ""
    if min_throughput is None and reference is None:
        return not_seen(
            "speed", "a figure to hold it against", f"{got}; give --repository or --min-throughput"
        )
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
        advice="something holds it up, not the hardware: 'fruitstand diagnose' names the step",
    )
