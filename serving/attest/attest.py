"""The whole attestation: every check in order, and what is reported of a server that does not answer."""

import asyncio
import datetime
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tritonclient.grpc import service_pb2

from fruitstand import __version__
from fruitstand.contract import FRUIT_CLASSIFIER
from fruitstand.errors import FruitstandError, UsageError
from fruitstand.images.synthetic import canary_image
from fruitstand.machine.provenance import hardware
from fruitstand.network.tls import Tls
from fruitstand.progress import track
from serving.attest.answer_checks import check_golden, check_parity
from serving.attest.caller import CHANNELS, Server
from serving.attest.check import Check, Status, judged, not_seen
from serving.attest.contract_checks import check_answers, check_contract, check_labels, check_version
from serving.attest.exposure_checks import check_control, check_runtime, devices
from serving.attest.input_checks import check_error_texts, check_input_kinds, check_isolation
from serving.attest.load_checks import (
    Speed,
    check_batching,
    check_deadline,
    check_queue_limit,
    judge_speed,
    measure_speed,
)
from serving.attest.promise import Promise, Reference, Subject, examine, read_promise, why_not
from serving.attest.report import Report

CALL_TIMEOUT_S, QUICK_CALL_TIMEOUT_S = 20.0, 10.0
POLL_S = 0.5
ATTEMPTS = 4
NAMES = (
    "answers", "contract", "labels", "version", "golden", "decode", "model", "parity", "input_kinds",
    "isolation", "batching", "queue_limit", "deadline", "speed", "error_texts", "control", "runtime", "alive",
)  # fmt: skip
ALWAYS = ("control", "runtime")
"""Checks that need no answer of the model."""

_CheckFunction = Callable[[Subject], Awaitable[Check | list[Check]]]


def attest(
    url: str,
    *,
    repository: Path | None = None,
    quick: bool = False,
    wait_s: float = 0.0,
    min_throughput: float | None = None,
    skip: tuple[str, ...] = (),
    tls: Tls | None = None,
    api_key: str | None = None,
) -> Report:
    """Hold a running server against its model repository.

    Args:
        url: HOST:PORT of its gRPC endpoint, or of the gateway before it.
        repository: the model repository it should be serving; None leaves out what needs it.
        quick: about 20 s instead of a minute: fewer images and shorter loads.
        wait_s: for the server to become ready, seconds.
        min_throughput: images/s at 64 in flight; None takes a tenth of this process's own.
        skip: names of checks to leave out.
        tls: encrypts the connection.
        api_key: sent with each call.

    Raises:
        UsageError: no such check, no repository there, or an address that is none.
    """
    if unknown := set(skip) - set(NAMES):
        raise UsageError(f"--skip: no check {min(unknown)!r}; there are {', '.join(NAMES)}")
    server = Server(
        url, tls=tls, api_key=api_key, timeout_s=QUICK_CALL_TIMEOUT_S if quick else CALL_TIMEOUT_S
    )
    promise = None if repository is None else read_promise(repository)
    return asyncio.run(_Attestation(server, promise, quick, min_throughput, frozenset(skip)).run(wait_s))


class _Attestation:
    """One run: the checks so far, and the subject once it answers."""

    def __init__(
        self,
        server: Server,
        promise: Promise | None,
        quick: bool,
        min_throughput: float | None,
        skip: frozenset[str],
    ) -> None:
        self._server, self._promise, self._quick = server, promise, quick
        self._min_throughput, self._skip = min_throughput, skip
        self._checks: list[Check] = []
        self._reference: Reference | None = None
        self._speeds: list[Speed] = []

    async def run(self, wait_s: float) -> Report:
        """All checks, in order."""
        started = time.monotonic()
        async with self._server as server:
            await _wait_until_ready(server, wait_s)
            server.error_texts.clear()
            self._checks.append(await check_answers(server, self._promise))
            if self._checks[0].status is Status.FAILED:
                has_gateway, subject = False, None
                self._checks += [
                    not_seen(name, "an answer to work with", f"{FRUIT_CLASSIFIER} does not answer")
                    for name in NAMES[1:]
                    if name not in ALWAYS
                ]
            else:
                subject = await examine(server, self._promise, canary_image(), quick=self._quick)
                has_gateway = subject.has_gateway
            # Now: later the server may be gone.
            self._checks.append(await check_control(server, has_gateway=has_gateway))
            runtime, about = await check_runtime(server, has_gateway=has_gateway)
            self._checks.append(runtime)
            if subject is not None:
                await self._run_groups(subject)
        by_name = {one.name: one for one in self._checks if one.name not in self._skip}
        return Report(
            url=server.url,
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - started, 1),
            quick=self._quick,
            fruitstand_version=__version__,
            server={**about, "gateway": has_gateway, "devices": devices(subject.configs if subject else {})},
            model_version=subject.version.number if subject and subject.version else None,
            speeds=tuple(self._speeds),
            hardware=hardware(),
            checks=tuple(by_name[name] for name in NAMES if name in by_name),
        )

    def _groups(self) -> list[tuple[tuple[str, ...], _CheckFunction]]:
        """Names and functions; speed comes before the bursts, error texts after all that fails."""
        return [
            (("contract",), check_contract),
            (("labels",), check_labels),
            (("version",), check_version),
            (("golden",), check_golden),
            (("decode", "model", "parity"), self._parity),
            (("batching",), check_batching),
            (("speed",), self._speed),
            (("input_kinds",), check_input_kinds),
            (("isolation",), check_isolation),
            (("queue_limit",), check_queue_limit),
            (("deadline",), check_deadline),
            (("error_texts",), check_error_texts),
        ]

    async def _run_groups(self, subject: Subject) -> None:
        """Each group, and after it whether the server still answers; what comes after its end is not seen."""
        ended_in = ""
        for names, check in track(self._groups(), total=len(self._groups()), description="attest"):
            if self._skip.issuperset(names):
                continue
            if ended_in:
                self._checks += [not_seen(name, "a server", f"it ended during {ended_in}") for name in names]
                continue
            await self._add(names, check, subject)
            if not await _still_answers(subject.server):
                ended_in = ", ".join(names)
        self._checks.append(
            judged(
                "alive",
                ok=not ended_in,
                expected="an answer after each of these checks",
                got=f"no answer after {ended_in}" if ended_in else "answers",
                advice="it ended or hangs: its log names the signal",
            )
        )

    async def _add(self, names: tuple[str, ...], check: _CheckFunction, subject: Subject) -> None:
        try:
            found = await check(subject)
            self._checks += found if isinstance(found, list) else [found]
        except FruitstandError as exc:  # the repository's own files, read on the way
            self._checks += [
                not_seen(name, "the version's files as published", why_not(exc)) for name in names
            ]

    async def _parity(self, subject: Subject) -> list[Check]:
        parity = await check_parity(subject)
        self._reference = parity.reference
        return parity.checks

    async def _speed(self, subject: Subject) -> Check:
        self._speeds = await measure_speed(subject)
        return judge_speed(self._speeds, self._reference, self._min_throughput)


async def _still_answers(server: Server) -> bool:
    """Whether an image gets an answer; a queue that is still full gets a moment."""
    for _ in range(ATTEMPTS):
        answer = await server.classify(canary_image())
        if answer.ok:
            return True
        await asyncio.sleep(POLL_S)
    return False


async def _wait_until_ready(server: Server, wait_s: float) -> None:
    """Ask again until it is ready on every connection, or the time is up."""
    deadline = time.monotonic() + wait_s
    request = service_pb2.ModelReadyRequest(name=FRUIT_CLASSIFIER)
    while time.monotonic() < deadline:
        # Each connection waits by itself after it was refused: that one is open says nothing of the others.
        answers = [await server.call("ModelReady", request, timeout_s=2.0) for _ in range(CHANNELS)]
        if all(answer.ok and answer.response.ready for answer in answers):
            return
        await asyncio.sleep(POLL_S)
