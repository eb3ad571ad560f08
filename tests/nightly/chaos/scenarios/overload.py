"""B. Overload: more calls than can be answered, callers that give up, that take too much, or that stall."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

from fruitstand.contract import FRUIT_RESNET
from fruitstand.repository.versions import published_versions
from tests.backends import pending_metric
from tests.nightly.chaos import bad_candidates
from tests.nightly.chaos.commands import must
from tests.nightly.chaos.load import Ledger, Load, capacity
from tests.nightly.chaos.material import ANY_SPEED
from tests.nightly.chaos.pictures import picture
from tests.nightly.chaos.processors import share_processors
from tests.nightly.chaos.setting import Outcome, Setting, at_least, at_most, equals, none_failed, none_of
from tests.nightly.chaos.stack import CANARY_INTERVAL_S

QUEUE_LIMIT_MS = 2000.0
"""`default_timeout_microseconds` of image_decode."""
REFUSED_MS = 50.0
SHED = {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}
IN_FLIGHT = 64
QUIET_RATE = 40.0
FULL_S = 3.0
"""Until the queues are as full as they get."""
NOISE_MS = 10.0
"""Of the p99 of some hundred calls that take as long."""
IDLE_S = 60.0


def overloaded(setting: Setting) -> Outcome:
    """9: three times the capacity, then ten times for 2 s."""
    tier, requests = setting.tier, [[picture()]]
    with setting.stack() as stack:
        apart = share_processors(stack)
        peak = capacity(stack, requests, seconds=max(6.0, tier.steady_s), in_flight=IN_FLIGHT)
        rss_mib = stack.rss_mib()
        with Load(stack, requests, rate=peak / 2, repeat=False) as load:
            time.sleep(tier.steady_s)
            began = time.monotonic()
            load.rate = 3 * peak
            time.sleep(FULL_S)
            full_mib = stack.rss_mib()
            time.sleep(tier.overload_s - FULL_S)
            load.rate = 10 * peak
            time.sleep(2)
            ended, load.rate = time.monotonic(), peak / 2
            time.sleep(5 + tier.steady_s)
        last_mib = stack.rss_mib()
        batch_ms = 1e3 * IN_FLIGHT / peak
    ledger, settled = load.ledger, began + 2
    numbers = {
        **ledger.numbers(), "peak_per_s": round(peak, 1), "processors_apart": apart,
        "offered_per_s": round(sum(began <= one.sent < ended for one in ledger.records) / (ended - began), 1),
        "goodput_per_s": round(ledger.goodput(settled, ended), 1),
        "baseline_p99_ms": ledger.quantile_ms(0.99, before=began),
        "admitted_p99_ms": _p99_ms(ledger, began, ended, answered=True),
        "refused_p99_ms": _p99_ms(ledger, began, ended, answered=False),
        "after_p99_ms": ledger.quantile_ms(0.99, after=ended + 5),
        "rss_mib": [round(one, 1) for one in (rss_mib, full_mib, last_mib)],
    }  # fmt: skip
    claims = (
        at_least("calls answered a second", numbers["goodput_per_s"], 0.9 * peak),
        at_most("p99 of answered calls, ms", numbers["admitted_p99_ms"] or 0, QUEUE_LIMIT_MS + 2 * batch_ms),
        at_most("p99 of refused calls, ms", numbers["refused_p99_ms"], REFUSED_MS),
        none_of("calls that end otherwise", set(ledger.statuses) - {"OK"} - SHED),
        at_most("memory at the end, MiB", last_mib, 1.1 * full_mib),
        at_most("p99 afterwards, ms", numbers["after_p99_ms"] or 0, 3 * (numbers["baseline_p99_ms"] or 0)),
    )
    return Outcome(claims, numbers)


def _p99_ms(ledger: Ledger, began: float, ended: float, *, answered: bool) -> float | None:
    """From the moment a call was sent: a generator that is late keeps nobody waiting."""
    taken = sorted(
        (one.done - one.sent) * 1e3
        for one in ledger.records
        if began <= one.sent < ended and (one.status == "OK") is answered
    )
    return round(taken[int(0.99 * (len(taken) - 1))], 1) if taken else None


def deadlines_pass(setting: Setting) -> Outcome:
    """10: deadlines of 50 ms against a backlog of 200 ms."""
    tier, requests = setting.tier, [[picture()]]
    with setting.stack() as stack:
        share_processors(stack)
        peak = capacity(stack, requests, seconds=max(6.0, tier.steady_s), in_flight=IN_FLIGHT)
        before, began = stack.executed("nv_inference_count", FRUIT_RESNET), time.monotonic()
        with Load(stack, requests, rate=0, in_flight=max(8, int(0.2 * peak)), repeat=False) as backlog:
            time.sleep(1)
            with Load(stack, requests, rate=peak / 4, deadline_s=0.05, repeat=False) as short:
                time.sleep(tier.overload_s)
        time.sleep(2)
        executed = stack.executed("nv_inference_count", FRUIT_RESNET) - before
        canaries = len(stack.replicas) * (time.monotonic() - began) / CANARY_INTERVAL_S
    answered = backlog.ledger.statuses["OK"] + short.ledger.statuses["OK"]
    in_vain = max(0.0, executed - answered - canaries)
    # Told by the server, which refuses what waited too long, or by the caller's own clock.
    waited_ms = sorted((one.done - one.sent) * 1e3 for one in short.ledger.records if one.status != "OK")
    numbers = {
        **short.ledger.numbers(), "executed": executed, "answered": answered, "expired": len(waited_ms),
        "canaries": round(canaries), "executed_in_vain_share": round(in_vain / max(1, len(waited_ms)), 3),
        "told_within_ms": round(waited_ms[int(0.99 * (len(waited_ms) - 1))], 1) if waited_ms else None,
    }  # fmt: skip
    claims = (
        at_least("calls that expire", len(waited_ms), 1),
        at_most("callers of 50 ms are told within, ms", numbers["told_within_ms"], 60),
        at_most("share of expired calls computed in vain", numbers["executed_in_vain_share"], 0.05),
    )
    return Outcome(claims, numbers)


def noisy_neighbour(setting: Setting) -> Outcome:
    """11: a caller at ten times its quota, headers that never end, and idle connections."""
    tier, access, requests = setting.tier, setting.folder / "access", [[picture()]]
    keys = {
        name: must("keys", "add", name, "--file", access / "api_keys.json", *quota).strip()
        for name, quota in (("quiet", ()), ("noisy", ("--requests-per-s", 5)))
    }
    with setting.stack(access=access) as stack:
        stack.api_key, stack.secrets = keys["quiet"], list(keys.values())

        def p99_ms() -> float:
            with Load(stack, requests, rate=QUIET_RATE) as quiet:
                time.sleep(max(8.0, 2 * tier.steady_s))
            return (quiet.ledger.quantile_ms(0.99) or 0.0) + 1e6 * quiet.ledger.failed

        alone_ms = p99_ms()
        with Load(stack, requests, rate=50, api_key=keys["noisy"], repeat=False) as noisy:
            quota_ms = p99_ms()
        with _slow_headers(stack.url, 50), _idle(stack.url, 2_000) as idle:
            opened = time.monotonic()
            idle_ms = p99_ms()
            idle.settimeout(2 * IDLE_S)
            with contextlib.suppress(OSError):
                idle.recv(1)
            idle_closed_s = time.monotonic() - opened
        refused = noisy.ledger.statuses
    numbers = {
        "alone_p99_ms": alone_ms, "beside_noisy_p99_ms": quota_ms, "beside_idle_p99_ms": idle_ms,
        "noisy": dict(refused), "idle_closed_after_s": round(idle_closed_s, 1),
    }  # fmt: skip
    claims = (
        equals("how the noisy caller's calls end", set(refused), {"OK", "RESOURCE_EXHAUSTED"}),
        at_most("p99 beside the noisy caller, ms", quota_ms, max(1.5 * alone_ms, alone_ms + NOISE_MS)),
        at_most("p99 beside idle connections, ms", idle_ms, max(1.2 * alone_ms, alone_ms + NOISE_MS)),
        at_most("an idle connection is closed after, s", idle_closed_s, IDLE_S + 5),
    )
    return Outcome(claims, numbers)


def inner_step_full(setting: Setting) -> Outcome:
    """12: the step behind the decoder is far slower than its callers."""
    tier, material = setting.tier, setting.material
    repository = setting.copy(material.repository, "repository")
    slow = setting.copy(material.second, "slow")
    bad_candidates.slow(slow / "export", num_channels=192)
    must("models", "publish", slow / "export", "--repository", repository, "--max-slowdown", ANY_SPEED)
    must("models", "promote", max(published_versions(repository)), "--repository", repository)
    deadline_s, pending = 3.0, pending_metric()
    with setting.stack(repository) as stack:
        with Load(stack, [[picture()]], rate=10 * tier.rate, deadline_s=deadline_s, repeat=False) as load:
            time.sleep(max(10.0, tier.overload_s / 2))  # until batches are as large as they get
            rss_mib = stack.rss_mib()
            time.sleep(tier.overload_s)
            grown_mib = stack.rss_mib() - rss_mib
        time.sleep(10)
        stuck = stack.executed(pending) + stack.executed(pending, FRUIT_RESNET)
        with Load(stack, [[picture()]], rate=2) as after:
            time.sleep(3)
    longest_ms = max(one.done - one.sent for one in load.ledger.records) * 1e3
    numbers = {
        **load.ledger.numbers(), "longest_call_ms": round(longest_ms, 1), "stuck": stuck,
        "rss_growth_mib": round(grown_mib, 1), "failed_afterwards": after.ledger.failed,
    }  # fmt: skip
    claims = (
        at_least("calls refused, so that the step was full", load.ledger.failed, 1),
        equals("requests stuck in a queue", stuck, 0),
        at_most("longest call, ms", longest_ms, deadline_s * 1e3 + 50),
        at_most("memory grows, MiB", grown_mib, 64),
        none_failed("no call fails afterwards", after.ledger),
    )
    return Outcome(claims, numbers)


@contextlib.contextmanager
def _idle(url: str, number: int) -> Iterator[socket.socket]:
    """So many connections on which nothing is said; the first."""
    host, _, port = url.rpartition(":")
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection((host, int(port)), 5)) for _ in range(number)
        ]
        yield connections[0]


@contextlib.contextmanager
def _slow_headers(url: str, number: int) -> Iterator[None]:
    """So many callers that send a header a byte a second."""
    host, _, port = url.rpartition(":")
    stopped = threading.Event()

    def drip() -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 5) as connection:
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nX-Long: ")
            while not stopped.wait(1):
                connection.sendall(b"x")

    threads = [threading.Thread(target=drip) for _ in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
