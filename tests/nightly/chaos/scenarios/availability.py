"""A. Availability: what goes away, hangs or comes back while calls arrive."""

import contextlib
import os
import signal
import time
from collections.abc import Callable

from fruitstand.errors import ServerError
from fruitstand_client import Client, RequestFailed
from tests.nightly.chaos.delay_proxy import DelayProxy
from tests.nightly.chaos.load import Load
from tests.nightly.chaos.pictures import picture
from tests.nightly.chaos.setting import UNCOUNTED, Claim, Outcome, Setting, at_most, equals, none_failed
from tests.nightly.chaos.stack import Stack

ABANDONED, RETRIED = "retry_or_shadow_abandoned", "upstream_rq_retry"
BACK_S = 120.0
AFTER_S = 5.0
MAX_P99_AFTER_MS = 1000.0
MAX_RETRIED_SHARE, MAX_RETRIED_A_KILL = 0.02, 5
"""Of all calls; of few calls in all, after each kill."""
EJECTED_S = 3.0
PROMPT_MS = 100.0
LATE_MS = 50.0
"""After its deadline no call may last longer."""
DEAD_PATH_S = 15.0


def _faulty_load(
    setting: Setting, requests: list[list[bytes]], fault: Callable[[Stack, int], object], *, rate: float = 0
) -> Outcome:
    """Calls go on while a fault happens again and again; none may fail."""
    tier, back_s, faults = setting.tier, [], []
    with setting.stack(hurt=("replicas",)) as stack:
        with Load(stack, requests, rate=rate or tier.rate) as load:
            for number in range(tier.repeats):
                time.sleep(tier.steady_s)
                faults.append(time.monotonic())
                fault(stack, number % len(stack.replicas))
                time.sleep(3)  # the gateway has to notice first
                back_s.append(stack.wait_healthy(len(stack.replicas), BACK_S))
            time.sleep(tier.steady_s)
        abandoned, retried = stack.counter(ABANDONED), stack.counter(RETRIED)
    ledger = load.ledger
    after_ms = [ledger.quantile_ms(0.99, after=at, before=at + AFTER_S) or 0.0 for at in faults]
    numbers = {
        **ledger.numbers(),
        "steady_p99_ms": ledger.quantile_ms(0.99, before=faults[0]),
        "p99_ms_in_5_s_after": after_ms,
        "retried": retried,
        "attempts_per_call": round((len(ledger.records) + retried) / max(1, len(ledger.records)), 4),
        "retry_or_shadow_abandoned": abandoned,
        "all_healthy_again_s": [round(one, 2) for one in back_s],
    }
    claims = (none_failed("no call fails", ledger), equals("retries given up", abandoned, 0))
    return Outcome(claims, numbers)


def replica_killed(setting: Setting) -> Outcome:
    """1: kill -9 of one replica under load."""
    done = _faulty_load(setting, [[picture(6_000)]], lambda stack, n: stack.signal(n, signal.SIGKILL))
    most = max(MAX_RETRIED_SHARE * done.numbers["calls"], MAX_RETRIED_A_KILL * setting.tier.repeats)
    claims = (
        *done.claims,
        at_most(
            "p99 in the 5 s after a kill, ms", max(done.numbers["p99_ms_in_5_s_after"]), MAX_P99_AFTER_MS
        ),
        at_most("retried calls", done.numbers["retried"], most),
    )
    return Outcome(claims, done.numbers)


def replica_killed_large(setting: Setting) -> Outcome:
    """2: the same with 300 KB and 4 MB."""
    requests = [[picture(300_000)], [picture(4_000_000)]]
    return _faulty_load(
        setting, requests, lambda stack, n: stack.signal(n, signal.SIGKILL), rate=setting.tier.rate / 2
    )


def replica_hangs(setting: Setting) -> Outcome:
    """3: SIGSTOP of one replica for 15 s, then SIGCONT."""
    ejected_s = []

    def fault(stack: Stack, number: int) -> None:
        stopped = stack.replica_pid(number)
        os.kill(stopped, signal.SIGSTOP)
        ejected_s.append(round(stack.wait_healthy(len(stack.replicas) - 1, BACK_S), 2))
        time.sleep(max(0.0, 15 - ejected_s[-1]))
        with contextlib.suppress(ServerError):  # it is being started again
            if stack.replica_pid(number) == stopped:
                os.kill(stopped, signal.SIGCONT)

    done = _faulty_load(setting, [[picture(6_000)]], fault)
    done.numbers["ejected_s"] = ejected_s
    slowest = at_most("the gateway leaves it out after, s", max(ejected_s), EJECTED_S)
    return Outcome((*done.claims, slowest), done.numbers)


def rolling_restart(setting: Setting) -> Outcome:
    """4: all replicas are restarted in turn under load."""

    def fault(stack: Stack, _: int) -> None:
        old = {stack.replica_pid(number) for number in range(len(stack.replicas))}
        stack.roll()
        deadline = time.monotonic() + 3 * BACK_S
        while time.monotonic() < deadline:
            time.sleep(1)
            try:
                if not old & {stack.replica_pid(number) for number in range(len(stack.replicas))}:
                    return
            except ServerError:  # one of them does not run at this moment
                continue

    return _faulty_load(setting, [[picture(6_000)]], fault)


def gateway_restarted(setting: Setting) -> Outcome:
    """5: one of two gateways is killed, and the only one."""
    tier = setting.tier
    with (
        setting.stack(name="a", replicas=1, hurt=UNCOUNTED) as one,
        setting.stack(name="b", replicas=1, hurt=UNCOUNTED) as other,
    ):
        with Load(one, [[picture(6_000)]], rate=tier.rate, url=f"{one.url},{other.url}") as pair:
            time.sleep(tier.steady_s)
            os.kill(one.gateway_pid(), signal.SIGKILL)
            time.sleep(tier.steady_s)
        one.wait_healthy(1, BACK_S)
        deadline_s = 5.0
        with Load(one, [[picture(6_000)]], rate=tier.rate, deadline_s=deadline_s, repeat=False) as alone:
            time.sleep(tier.steady_s)
            os.kill(one.gateway_pid(), signal.SIGKILL)
            time.sleep(tier.steady_s + 3)
    lost = [one.due for one in alone.ledger.records if one.status != "OK"]
    gap_s = max(lost) - min(lost) if lost else 0.0
    longest_ms = max(one.done - one.sent for one in alone.ledger.records) * 1e3
    numbers = {
        "two": pair.ledger.numbers(), "one": alone.ledger.numbers(), "gap_s": round(gap_s, 2),
        "longest_call_ms": round(longest_ms, 1),
    }  # fmt: skip
    claims = (
        none_failed("no call fails with two gateways", pair.ledger),
        at_most("gap with one gateway, s", gap_s, 2),
        at_most("longest call, ms", longest_ms, deadline_s * 1e3 + LATE_MS),
    )
    return Outcome(claims, numbers)


def cold_start(setting: Setting) -> Outcome:
    """6: load from the first "ready" on."""
    rate = max(20.0, setting.tier.rate)
    with setting.stack() as stack, Load(stack, [[picture(6_000)]], rate=rate) as load:
        time.sleep(max(20.0, 2 * setting.tier.steady_s))
    first = sorted(one.latency_ms for one in load.ledger.records[:100])
    last = sorted(one.latency_ms for one in load.ledger.records[-100:])
    ratio = first[98] / last[98]
    numbers = {
        **load.ledger.numbers(), "ready_s": round(stack.ready_s, 1), "first_100_p99_ms": round(first[98], 1),
        "last_100_p99_ms": round(last[98], 1),
    }  # fmt: skip
    slower = at_most("p99 of the first 100 calls over that of the last 100", ratio, 3)
    return Outcome((none_failed("no call fails", load.ledger), slower), numbers)


def all_replicas_down(setting: Setting) -> Outcome:
    """7: no replica for 30 s, then all again."""
    tier, numbers = setting.tier, {}
    with setting.stack(hurt=("replicas",)) as stack:
        every = range(len(stack.replicas))
        stopped = [stack.replica_pid(number) for number in every]
        with Load(stack, [[picture(6_000)]], rate=tier.rate) as load:
            time.sleep(tier.steady_s)
            os.kill(stack.pid, signal.SIGSTOP)  # nobody starts them again meanwhile
            for pid in stopped:
                os.kill(pid, signal.SIGKILL)
            down = time.monotonic()
            time.sleep(6)
            attempts = stack.counter("upstream_rq_total")
            prompt = _refusals(stack, 20)
            time.sleep(max(1.0, 15 - (time.monotonic() - down)))
            numbers["upstream_attempts_while_down"] = stack.counter("upstream_rq_total") - attempts
            numbers["calls_offered_while_down"] = round(tier.rate * (time.monotonic() - down - 6))
            os.kill(stack.pid, signal.SIGCONT)
            stack.wait_healthy(len(stack.replicas), BACK_S)
            back = time.monotonic() + 5
            time.sleep(5 + tier.steady_s)
            ended = time.monotonic()
    late = [one for one in load.ledger.records if one.due > back and one.status != "OK"]
    numbers |= {
        **load.ledger.numbers(), "refused_within_ms": round(max(prompt), 1),
        "failed_from_5_s_after_return": len(late), "rate_after": load.ledger.goodput(back, ended - 1),
    }  # fmt: skip
    offered = numbers["calls_offered_while_down"]
    claims = (
        at_most("a refusal takes, ms", max(prompt), PROMPT_MS),
        at_most("attempts while all are down", numbers["upstream_attempts_while_down"], 1.1 * offered),
        equals("calls that fail from 5 s after the return", len(late), 0),
    )
    return Outcome(claims, numbers)


def _refusals(stack: Stack, number: int) -> list[float]:
    """How long single attempts last, ms; all have to be refused."""
    taken = []
    with Client(stack.url) as client:
        for _ in range(number):
            started = time.monotonic()
            try:
                client.classify_batch([picture()])
                taken.append(float("inf"))
            except RequestFailed as exc:
                lasted = (time.monotonic() - started) * 1e3
                taken.append(lasted if exc.status == "UNAVAILABLE" else float("inf"))
    return taken


def path_goes_dead(setting: Setting) -> Outcome:
    """8: 200 ms of delay, then a connection on which nothing passes any more."""
    tier, deadline_s = setting.tier, 3.0
    with (
        setting.stack() as stack,
        DelayProxy(stack.url, delay_s=0.2) as proxy,
        Load(
            stack, [[picture(6_000)]], rate=tier.rate, deadline_s=deadline_s, url=proxy.url, keepalive_s=5
        ) as load,
    ):
        time.sleep(tier.steady_s)
        proxy.swallow()
        dead = time.monotonic()
        time.sleep(DEAD_PATH_S + tier.steady_s)
    records = load.ledger.records
    longest_ms = max(one.done - one.sent for one in records) * 1e3
    found_s = min((one.done for one in records if one.sent > dead and one.status == "OK"), default=0) - dead
    numbers = {
        **load.ledger.numbers(), "longest_call_ms": round(longest_ms, 1),
        "dead_path_found_s": round(found_s, 2), "too_many_pings": "too_many_pings" in stack.log(),
    }  # fmt: skip
    claims = (
        Claim("calls go on, on a new path", found_s > 0, "True", found_s > 0),
        at_most("the dead path is found after, s", found_s, DEAD_PATH_S),
        at_most("longest call, ms", longest_ms, deadline_s * 1e3 + LATE_MS),
        equals("the server complains of pings", numbers["too_many_pings"], False),
    )
    return Outcome(claims, numbers)
