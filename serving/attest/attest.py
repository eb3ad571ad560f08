"""Run every check of an attestation in order, and keep reporting when the server stops answering."""

import asyncio
import datetime
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tritonclient.grpc import service_pb2

from fruitstand import __version__
from fruitstand.errors import FruitstandError, UsageError
from fruitstand.images.synthetic import canary_image
from fruitstand.machine.provenance import hardware
from fruitstand.network.tls import Tls
from fruitstand.progress import track
from fruitstand.repository.model_names import DEFAULT_NAME, names_for, repository_names
from serving.attest.answer_checks import check_golden, check_parity
from serving.attest.caller import CHANNELS, Server
from serving.attest.contract_checks import check_answers, check_contract, check_labels, check_version
from serving.attest.exposure_checks import check_control, check_runtime, devices
from serving.attest.input_checks import check_error_texts, check_input_kinds, check_isolation
from serving.attest.load_checks import check_batching, check_deadline, check_queue_limit, check_speed
from serving.attest.promise import Promise, Subject, examine, read_promise, without_folders
from serving.attest.report import Check, Report, Status, judged, not_seen

CALL_TIMEOUT_S, QUICK_CALL_TIMEOUT_S = 20.0, 10.0
POLL_S = 0.5
ATTEMPTS = 4
NAMES = (
    "answers", "contract", "labels", "version", "golden", "decode", "model", "parity", "known", "input_kinds",
    "isolation", "batching", "queue_limit", "deadline", "speed", "error_texts", "control", "runtime", "alive",
)  # fmt: skip
"""Every check, in the order of the report."""
CHECKS: tuple[tuple[tuple[str, ...], Callable[[Subject], Awaitable[Check | list[Check]]]], ...] = (
    (("contract",), check_contract),
    (("labels",), check_labels),
    (("version",), check_version),
    (("golden",), check_golden),
    (("decode", "model", "parity", "known"), check_parity),
    (("batching",), check_batching),
    (("speed",), check_speed),
    (("input_kinds",), check_input_kinds),
    (("isolation",), check_isolation),
    (("queue_limit",), check_queue_limit),
    (("deadline",), check_deadline),
    (("error_texts",), check_error_texts),
)
"""Checks that need a server that classifies, in the order they run.

Speed is measured before the bursts fill the queue. Error texts come last: they judge all errors before them.
"""


def attest(
    url: str,
    *,
    repository: Path | None = None,
    name: str | None = None,
    quick: bool = False,
    wait_s: float = 0.0,
    min_throughput: float | None = None,
    skip: tuple[str, ...] = (),
    tls: Tls | None = None,
    api_key: str | None = None,
) -> Report:
    """Check a running server against its model repository; the options are those of `fruitstand attest`.

    Raises:
        UsageError: an unknown check, no repository there, or a malformed address.
    """
    if unknown := set(skip) - set(NAMES):
        raise UsageError(f"--skip: no check {min(unknown)!r}; there are {', '.join(NAMES)}")
    timeout_s = QUICK_CALL_TIMEOUT_S if quick else CALL_TIMEOUT_S
    names = names_for(name or DEFAULT_NAME) if repository is None else repository_names(repository, name)
    server = Server(url, names=names, tls=tls, api_key=api_key, timeout_s=timeout_s)
    promise = None if repository is None else read_promise(repository)
    return asyncio.run(_attest(server, promise, quick, wait_s, min_throughput, frozenset(skip)))


async def _attest(
    server: Server,
    promise: Promise | None,
    quick: bool,
    wait_s: float,
    min_throughput: float | None,
    skip: frozenset[str],
) -> Report:
    started = time.monotonic()
    subject = None
    async with server:
        await _wait_until_ready(server, wait_s)
        server.error_texts.clear()
        checks = [await check_answers(server, promise)]
        if checks[0].status is not Status.FAILED:
            subject = await examine(server, promise, quick=quick, min_throughput=min_throughput)
        has_gateway = subject is not None and subject.has_gateway
        # Before the load checks: they may end the server.
        checks.append(await check_control(server, has_gateway=has_gateway))
        runtime, about = await check_runtime(server, has_gateway=has_gateway)
        checks.append(runtime)
        if subject is not None:
            checks += await _run_checks(subject, skip)
    by_name = {check.name: check for check in checks}
    for name in NAMES:
        reason = f"{server.names.classifier} does not answer"
        by_name.setdefault(name, not_seen(name, "a server that classifies images", reason))
    return Report(
        url=server.url,
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - started, 1),
        quick=quick,
        fruitstand_version=__version__,
        server={**about, "gateway": has_gateway, "devices": devices(subject.configs if subject else {})},
        model_version=subject.version.number if subject and subject.version else None,
        speeds=tuple(subject.speeds if subject else ()),
        hardware=hardware(),
        checks=tuple(by_name[name] for name in NAMES if name not in skip),
    )


async def _run_checks(subject: Subject, skip: frozenset[str]) -> list[Check]:
    """Run the checks until the server stops answering; the remaining ones are reported as not seen."""
    checks: list[Check] = []
    ended_in = ""
    for names, check in track(CHECKS, total=len(CHECKS), description="attest"):
        if skip.issuperset(names):
            continue
        if ended_in:
            reason = f"the server stopped answering during {ended_in}"
            checks += [not_seen(name, "a running server", reason) for name in names]
            continue
        try:
            found = await check(subject)
            checks += found if isinstance(found, list) else [found]
        except FruitstandError as exc:  # the check reads the version's files
            checks += [
                not_seen(name, "the version's files as published", without_folders(exc)) for name in names
            ]
        if not await _still_answers(subject.server):
            ended_in = ", ".join(names)
    checks.append(
        judged(
            "alive",
            ok=not ended_in,
            expected="an answer after each of these checks",
            got=f"no answer after {ended_in}" if ended_in else "answers",
            advice="the server crashed or hangs: look at its log",
        )
    )
    return checks


async def _still_answers(server: Server) -> bool:
    """Whether the server classifies an image; retries while its queue is still full."""
    for _ in range(ATTEMPTS):
        answer = await server.classify(canary_image())
        if answer.ok:
            return True
        await asyncio.sleep(POLL_S)
    return False


async def _wait_until_ready(server: Server, wait_s: float) -> None:
    """Poll until the model is ready on every connection, or the time is up."""
    deadline = time.monotonic() + wait_s
    request = service_pb2.ModelReadyRequest(name=server.names.classifier)
    while time.monotonic() < deadline:
        # Each channel backs off by itself after a refused connection, so all of them have to answer.
        answers = [await server.call("ModelReady", request, timeout_s=2.0) for _ in range(CHANNELS)]
        if all(answer.ok and answer.response.ready for answer in answers):
            return
        await asyncio.sleep(POLL_S)
