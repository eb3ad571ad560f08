"""A worker dies or freezes, the server is told to end, and the model is replaced, all under load."""

import os
import signal
import time
from itertools import pairwise

from benchmarks.faults.ledger import LOST, RIGHT, Ledger, Load
from benchmarks.faults.running import Bench, Cell
from fruitstand.errors import FruitstandError

CALM_S = 2.0
AFTER_S = 16.0
FROZEN_S = 10.0
ARRIVES_S = 60.0
"""Longest wait for an answer of the new model."""
MIXED_S = 8.0
"""After it: do old answers still come?"""
IN_FLIGHT = 32
"""When it is told to end."""


def kill(bench: Bench) -> Cell:
    """One worker is killed by SIGKILL."""
    return _hurt(bench, signal.SIGKILL)


def freeze(bench: Bench) -> Cell:
    """SIGSTOP of one worker for 10 s."""
    return _hurt(bench, signal.SIGSTOP, then=signal.SIGCONT)


def _hurt(bench: Bench, number: signal.Signals, then: signal.Signals | None = None) -> Cell:
    pids, replaced = bench.running.workers(), False
    with bench.steady() as load:
        time.sleep(CALM_S)
        hurt = time.monotonic()
        os.kill(pids[0], number)
        try:
            time.sleep(FROZEN_S)
        finally:
            if then is not None:
                try:
                    os.kill(pids[0], then)
                except ProcessLookupError:
                    replaced = True
        time.sleep(AFTER_S - FROZEN_S)
    back_s = load.ledger.abnormal_s(hurt)
    back = f"not back in {AFTER_S:g} s" if back_s is None else f"back in {back_s:g} s"
    text = f"{load.ledger.failed} failed, {back}" + ", worker replaced" * replaced
    return Cell(text=text, numbers={"workers": len(pids), "back_s": back_s, **load.ledger.numbers()})


def terminate(bench: Bench) -> Cell:
    """SIGTERM with 32 calls under way: they get their answers or not."""
    with Load(bench.caller, in_flight=IN_FLIGHT) as load:
        time.sleep(CALM_S)
        told = time.monotonic()
        exit_s = bench.running.stop()
    records = load.ledger.records
    under_way = [one for one in records if one.sent < told < one.done]
    lost = sum(one.verdict != RIGHT for one in under_way)
    later = Ledger([one for one in records if one.sent >= told])
    # A refused connection says that nothing was taken; a broken one leaves its caller in doubt.
    doubtful = sum(
        one.verdict == LOST and one.status != ConnectionRefusedError.__name__ for one in later.records
    )
    text = f"{lost} of {len(under_way)} lost, {doubtful} later ones broken off, ended in {exit_s:g} s"
    numbers = {"under_way": len(under_way), "lost_under_way": lost, "broken_off_later": doubtful}
    return Cell(text=text, numbers={**numbers, "exit_s": exit_s, "later": later.numbers()})


def swap(bench: Bench) -> Cell:
    """Another model replaces the served one, in the way its documentation gives."""
    subject, failure = bench.running.subject, None
    with bench.steady() as load:
        time.sleep(CALM_S)
        began = time.monotonic()
        try:
            subject.swap(bench.running)
        except (FruitstandError, OSError) as exc:
            failure = str(exc)
        took_s = round(time.monotonic() - began, 1)
        while time.monotonic() < began + ARRIVES_S and not any(
            one.version == bench.running.second for one in load.ledger.records[-50:]
        ):
            time.sleep(0.5)
        time.sleep(MIXED_S)
    ledger = load.ledger
    answered = sorted((one for one in ledger.records if one.verdict == RIGHT), key=lambda one: one.done)
    arrived = min((one.done for one in answered if one.version == bench.running.second), default=None)
    mixed = sum(
        arrived is not None and one.sent > arrived and one.version == bench.running.first for one in answered
    )
    longest = max((later.done - one.done for one, later in pairwise(answered)), default=0.0)
    text = f"{ledger.failed} failed, {mixed} mixed, gap {longest:.1f} s"
    if arrived is None:
        text += ", never swapped"
    numbers = {
        "how": subject.swap_note,
        "failure": failure,
        "took_s": took_s,
        "first_new_answer_s": None if arrived is None else round(arrived - began, 1),
        "mixed": mixed,
        "longest_gap_s": round(longest, 2),
        **ledger.numbers(),
    }
    return Cell(text=text, numbers=numbers)
