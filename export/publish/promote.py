"""`fruitstand models promote` and `rollback`: change the served version without a failed request.

On a running server: load the new version beside the old one, check its golden images, switch the ensemble.
Triton keeps a queue for each version, so no batch mixes them. The old version stays loaded until the next
promotion, so that a rollback loads nothing; a server that starts loads only the served version. A failure
before the switch is undone, and the old version keeps answering. Servers behind a gateway take each step
together; both versions answer for half a second while their ensembles are switched one after the other.
"""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from export.publish.canary_watch import watch
from export.publish.live_server import LiveServer
from export.publish.replay_gate import ReplayGate
from export.publish.repository import locked, write_served
from fruitstand.errors import FruitstandError, ServerError, UsageError
from fruitstand.repository.audit_log import audited
from fruitstand.repository.model_control import read_control
from fruitstand.repository.model_names import repository_names
from fruitstand.repository.versions import (
    ServingState,
    Version,
    published_versions,
    serving_state,
    transition,
    verify_version,
)

log = logging.getLogger("fruitstand.export")

DRAIN_S = 0.6
"""Longest time for all servers together, during which both versions may answer."""


def promote(
    repository: Path,
    number: int,
    *,
    url: str | None = None,
    control: Path | None = None,
    watch_s: float = 0.0,
    gate: ReplayGate | None = None,
    trusted_keys: Path | None = None,
) -> ServingState:
    """Serve another version.

    The arguments are the options of `fruitstand models promote`; 0 for `watch_s` switches all servers at
    once.

    Returns:
        The served and the previous version.

    Raises:
        UsageError: no model repository, no such version, or no such file.
        ArtefactError: the version was altered or lacks the required signature, or another command is changing
            the repository.
        GateFailed: recorded or golden images got other answers, or the version was worse while it was
            watched.
        ServerError: the server refuses, does not answer, or reads another repository.
    """
    with locked(repository), audited(repository, "promote", number) as details:
        servers = _servers(repository, url, control)
        if watch_s and len(servers) < 2:
            raise UsageError("watching a version needs several servers behind a gateway, and --control")
        return _switch(repository, number, servers, trusted_keys, details, watch_s, gate)


def rollback(
    repository: Path,
    *,
    url: str | None = None,
    control: Path | None = None,
    trusted_keys: Path | None = None,
) -> ServingState:
    """Serve the previous version; see `promote`.

    Raises:
        UsageError: there is no previous version.
    """
    with locked(repository), audited(repository, "rollback", None) as details:
        state = serving_state(repository)
        if state is None or state.previous is None:
            raise UsageError(f"{repository}: there is no previous version")
        details["version"] = state.previous
        return _switch(repository, state.previous, _servers(repository, url, control), trusted_keys, details)


def _servers(repository: Path, url: str | None, control: Path | None) -> list[LiveServer]:
    names = repository_names(repository)
    if control is not None:
        told = read_control(control)
        pairs = zip(told.servers, told.metrics, strict=True)
        return [LiveServer(one, names, told.headers, metrics_url=metrics) for one, metrics in pairs]
    return [] if url is None else [LiveServer(url, names)]


def _switch(
    repository: Path,
    number: int,
    servers: list[LiveServer],
    trusted_keys: Path | None,
    details: dict,
    watch_s: float = 0.0,
    gate: ReplayGate | None = None,
) -> ServingState:
    version = verify_version(repository, number, trusted_keys=trusted_keys)
    details["live"] = bool(servers)
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.enter_context(server)
        sample = version.golden()[0].path.read_bytes() if servers else b""
        old = _answering(repository, servers, sample) if servers else serving_state(repository)
        new = ServingState(number, previous=None if old is None else old.version)
        if old is not None and old.version == number:
            new = old.alone()
        if gate is not None:
            if old is None:
                raise UsageError(f"{repository}: serves no version to compare with; promote without --replay")
            details["replay"] = gate.check(repository, number, against=old.version, trusted_keys=trusted_keys)
        # Equal for all versions. Taken from the verified one, because the old manifest may be damaged.
        write = functools.partial(write_served, repository, described_by=version)
        if servers:
            _switch_live(write, servers, transition(old, new), version, watch_s)
        else:
            for state in transition(old, new):
                write(state)
    details["previous"] = new.previous
    return new


def _switch_live(
    write: Callable[[ServingState], None],
    servers: list[LiveServer],
    states: list[ServingState],
    version: Version,
    watch_s: float,
) -> None:
    """Render each state, let the servers load it, and check their answers; undo on failure."""
    beside, switched, alone = states
    old = beside.alone()
    try:
        for state, load_and_check in ((beside, _load_beside), (switched, _switch_over)):
            write(state)
            load_and_check(servers, version, watch_s)
    except BaseException:
        with _warning(f"serving version {old.version} again is not complete; promote it once more"):
            write(old)
            # In this order, because the ensemble must not pin a version that is unloaded next.
            _load_all(servers)
        raise
    if version.serve.explains:
        with _warning(f"explanations are not of version {version.number}; promote it once more"):
            for server in servers:
                server.load(server.names.explainer)
    with _warning(f"version {alone.version} answers, but a server that starts would load {old.version} too"):
        write(alone)


def _load_beside(servers: list[LiveServer], version: Version, watch_s: float) -> None:
    """Load the version beside the one that answers, and check its golden images."""
    for server in servers:
        server.load(server.names.model)
        server.check_golden(version)
        _let_queues_drain(servers)


def _switch_over(servers: list[LiveServer], version: Version, watch_s: float) -> None:
    """Load the ensemble that pins the version, and check that it answers; optionally on one server first."""
    first, *rest = servers
    first.load(first.names.classifier)
    if watch_s:
        watch(version.number, first, rest, watch_s)
    for server in rest:
        _let_queues_drain(servers)
        server.load(server.names.classifier)
    sample = version.golden()[0].path.read_bytes()
    for server in servers:
        number = server.answering_version(sample)
        if number != version.number:
            raise ServerError(f"version {number} answers after the switch to version {version.number}")


def _let_queues_drain(servers: list[LiveServer]) -> None:
    """Servers load one after the other, because the others take the calls of a loading server."""
    if len(servers) > 1:
        time.sleep(DRAIN_S / len(servers))


def _load_all(servers: list[LiveServer]) -> None:
    """Load the ensemble, then the model, on each server, even if another one fails.

    Raises:
        ServerError: of the first that failed.
    """
    failures = []
    for server in servers:
        try:
            server.load(server.names.classifier)
            server.load(server.names.model)
        except ServerError as exc:
            failures.append(exc)
    if failures:
        raise failures[0]


def _answering(repository: Path, servers: list[LiveServer], sample: bytes) -> ServingState:
    """The state that the servers serve, which may differ from the repository's."""
    state = serving_state(repository)
    numbers = tuple(dict.fromkeys(server.answering_version(sample) for server in servers))
    for number in numbers:
        if number not in published_versions(repository):
            raise ServerError(
                f"version {number} answers, which {repository} does not have; does the server read another"
                " one?"
            )
    if state is not None and numbers == (state.version,):
        return state.alone()
    log.warning(
        "version %s answers, another than the repository's; it stays until the switch",
        " and ".join(map(str, numbers)),
    )
    if state is not None and state.version in numbers:
        return replace(state, loaded=numbers)
    return ServingState(numbers[0], previous=None if state is None else state.version, loaded=numbers)


@contextlib.contextmanager
def _warning(meaning: str) -> Iterator[None]:
    """Log failures of clean-up steps, which no longer change the outcome."""
    try:
        yield
    except (FruitstandError, OSError, KeyboardInterrupt) as exc:
        log.warning("%s: %s", meaning, str(exc) or type(exc).__name__)
