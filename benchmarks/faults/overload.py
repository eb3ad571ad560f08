"""Too much load, callers that give up, and a long steady load."""

import asyncio
import statistics
import time

from benchmarks.faults.ledger import LOST, REFUSED, RIGHT, Load
from benchmarks.faults.running import Bench, Cell

OVERLOAD_FACTOR = 3.0
OVERLOAD_S = 20.0
AFTER_S = 12.0
GIVE_UP_S = 0.05
WAVES, WAVE_CALLS = 4, 64
SETTLE_S = 2.0
"""After each wave: what still waits is computed or dropped."""
WARM_UP_SHARE = 0.3
"""Of a soak: memory that grows in this time is not counted."""
SAMPLE_S = 10.0


def overload(bench: Bench) -> Cell:
    """Three times the capacity for 20 s, then a load that it can bear."""
    began = time.monotonic()
    with Load(bench.caller, rate=OVERLOAD_FACTOR * bench.capacity) as load:
        time.sleep(OVERLOAD_S)
        ended = time.monotonic()
    with bench.steady() as after:  # once the last of the overload was answered or given up
        time.sleep(AFTER_S)
    during = load.ledger
    right = sum(one.verdict == RIGHT and one.done < ended for one in during.records)
    goodput = right / (ended - began) / bench.capacity
    factor = len(during.records) / (ended - began) / bench.capacity  # what the generator managed
    since = min(one.sent for one in after.ledger.records)
    abnormal_s = after.ledger.abnormal_s(since)
    back_s = None if abnormal_s is None else round(since - ended + abnormal_s, 1)
    refused_ms = during.quantile_ms(0.99, REFUSED)
    text = (
        f"{goodput:.0%} at {factor:.1f}x, "
        + (f"refused in {refused_ms:.0f} ms, " if refused_ms is not None else "none refused, ")
        + f"{during.count(LOST)} lost, "
        + (f"back in {back_s:g} s" if back_s is not None else f"not back in {AFTER_S:g} s")
    )
    numbers = {
        "goodput_share": round(goodput, 3),
        "refusal_p99_ms": refused_ms,
        "back_s": back_s,
        "rate": round(OVERLOAD_FACTOR * bench.capacity, 1),
        "factor": round(factor, 2),
        "during": during.numbers(),
        "after": after.ledger.numbers(),
    }
    return Cell(text=text, numbers=numbers)


def give_up(bench: Bench) -> Cell:
    """Four times 64 calls at once whose callers hang up after 50 ms: how many are computed all the same?"""
    running, records = bench.running, []
    num_images = bench.caller.target.num_requests
    before = running.computed()
    time.sleep(WAVES * SETTLE_S)
    idle = running.computed()
    for _ in range(WAVES):
        numbers = [number % num_images for number in range(WAVE_CALLS)]
        records += asyncio.run(bench.caller.at_once(numbers, GIVE_UP_S))
        time.sleep(SETTLE_S)
    for_itself = idle - before  # our supervisor sends images of its own
    computed = running.computed() - idle - for_itself
    answered = sum(one.verdict == RIGHT for one in records)
    gave_up = sum(one.status == "TimeoutError" for one in records)
    wasted = max(0, min(gave_up, computed - answered))
    return Cell(
        text=f"{wasted} of {gave_up}",
        numbers={
            "calls": len(records),
            "answered": answered,
            "gave_up": gave_up,
            "computed": computed,
            "computed_for_nobody": wasted,
        },
    )


def soak(bench: Bench) -> Cell:
    """The steady load for minutes: a line through the memory after the warm-up."""
    began, samples = time.monotonic(), []
    with bench.steady() as load:
        while (passed := time.monotonic() - began) < bench.soak_s:
            if passed >= WARM_UP_SHARE * bench.soak_s:
                samples.append((passed, bench.running.memory_mib()))
            time.sleep(min(SAMPLE_S, bench.soak_s / 20))
    per_s = statistics.linear_regression(*zip(*samples, strict=True)).slope
    per_1000 = per_s * 1000 / bench.steady_rate
    measured_s = samples[-1][0] - samples[0][0]
    text = (
        f"{per_s * measured_s:+.0f} of {samples[-1][1]:.0f} MiB in {measured_s / 60:.0f} min, "
        f"{per_1000:+.2f} MiB per 1,000 answers, {load.ledger.failed} failed"
    )
    numbers = {
        "minutes": round(bench.soak_s / 60, 1),
        "rate": round(bench.steady_rate, 1),
        "mib_per_hour": round(per_s * 3600, 2),
        "mib_per_1000": round(per_1000, 4),
        "samples_s_mib": [(round(passed), mib) for passed, mib in samples],
        **load.ledger.numbers(),
    }
    return Cell(text=text, numbers=numbers)
