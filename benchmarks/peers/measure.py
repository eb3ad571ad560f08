"""Measure one server once: start, check of answers, load, memory, stop, leftover processes."""

import asyncio
import contextlib
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Coroutine, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import grpc

from benchmarks.load import Target, closed_loop, labels
from benchmarks.peers import processes
from benchmarks.peers.catalogue import SERVERS, Peer
from benchmarks.peers.environments import install
from fruitstand.artefacts import write_json
from fruitstand.errors import FruitstandError, ServerError
from fruitstand.machine.threads import thread_budget, thread_environment
from fruitstand.network.ports import free_ports
from fruitstand.stages import served
from serving.triton.backend_directory import BACKENDS_VARIABLE

Result = TypeVar("Result")
OURS, STUBS = "fruitstand", "fruitstand_stub"
"""Names of our server on its C++ backend, and on the Python stubs."""
IN_FLIGHT = (1, 8, 64)
START_TIMEOUT_S = 120.0
CHECK_TIMEOUT_S = 60.0
LOAD_TIMEOUT_S = 30.0
MIN_SAME_TOP1 = 0.98
"""Share of labels that must equal ours. fp32 and int8, and Pillow and DALI, differ on a few images."""
ROOT = Path(__file__).parents[2]
SETTINGS_NAME = "peer.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A server to measure: a peer with a variant of the model, or ours if `peer` is None."""

    name: str
    peer: Peer | None
    settings: dict[str, Any]


@dataclass(slots=True)
class Round:
    """Inputs that all cases of a round share."""

    repository: Path
    images: tuple[bytes, ...]
    seconds: float
    in_flight: tuple[int, ...] = IN_FLIGHT
    """Requests in flight, one number per load."""
    expected: list[str] = field(default_factory=list)
    """Our server's labels; empty until it was measured."""


def measure(case: Case, one_round: Round) -> dict[str, Any]:
    """Start a server, measure it, and stop it.

    Returns:
        `start_s` until the first answer, `memory_mib` after the load, `same_top1`: the share of labels equal
        to ours, the result of each load, other busy processes, and the number of processes left over.

    Raises:
        FruitstandError: the server did not start, an answer failed, or too many labels differ.
    """
    mark = secrets.token_hex(8)
    busy = processes.busy_others()
    started = time.monotonic()
    with _running(case, one_round, mark) as (target, log):
        wait_for_answer(target, started, mark, log)
        result: dict[str, Any] = {"start_s": round(time.monotonic() - started, 2)}
        found = _within(CHECK_TIMEOUT_S, labels(target))
        one_round.expected = one_round.expected or found
        same = sum(map(str.__eq__, found, one_round.expected)) / len(found)
        if same < MIN_SAME_TOP1:
            raise FruitstandError(f"only {same:.1%} of its labels equal ours")
        result["same_top1"] = round(same, 4)
        for in_flight in one_round.in_flight:
            loop = closed_loop(target, in_flight, one_round.seconds)
            result[f"c{in_flight}"] = asdict(_within(LOAD_TIMEOUT_S + one_round.seconds, loop))
        result["memory_mib"] = processes.memory_mib(mark)
    return {**result, "busy_before": busy, "left_over": len(processes.marked(mark))}


def _within(limit_s: float, work: Coroutine[Any, Any, Result]) -> Result:
    """Run with a time limit; an error fails this case only, not the whole run."""
    try:
        return asyncio.run(asyncio.wait_for(work, limit_s))
    except TimeoutError as exc:
        raise FruitstandError(f"did not finish within {limit_s:g} s") from exc
    except (OSError, aiohttp.ClientError, grpc.RpcError, ValueError, KeyError) as exc:
        raise FruitstandError(f"unexpected answer: {exc}") from exc


@contextlib.contextmanager
def _running(case: Case, one_round: Round, mark: str) -> Iterator[tuple[Target, Path]]:
    with tempfile.TemporaryDirectory(prefix="fruitstand-peer-", ignore_cleanup_errors=True) as scratch:
        log = Path(scratch, "log")
        if case.peer is None:
            environment = {processes.MARK: mark, BACKENDS_VARIABLE: case.settings["backends"]}
            with served(one_round.repository, log=log, environment=environment) as url:
                yield Target(url, one_round.images), log
            return
        port = free_ports(1)[0]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command(case.peer, port),
                cwd=SERVERS,
                env=variables(case, mark, port, scratch),
                stdout=output,
                stderr=output,
            )
            try:
                yield Target(f"http://127.0.0.1:{port}", one_round.images, case.peer), log
            finally:
                processes.stop(mark)
                process.kill()  # in case it lost the mark
                process.wait()


def command(peer: Peer, port: int) -> list[str]:
    """Program and arguments of a peer; installs its environment on first use."""
    filled = {"PORT": str(port), "CORES": str(thread_budget())}
    program, *arguments = (filled.get(word, word) for word in peer.command)
    return [str(install(peer.environment) / program), *arguments]


def variables(case: Case, mark: str, port: int, scratch: str) -> dict[str, str]:
    """Environment variables of a peer; its settings go to `peer.json` in the scratch folder."""
    assert case.peer is not None
    settings = Path(scratch, SETTINGS_NAME)
    threads = max(1, thread_budget() // case.settings.get("workers", 1))
    write_json(settings, {**case.settings, "num_threads": threads})
    programs = install(case.peer.environment)
    others = {f"PORT_{number}": str(one) for number, one in enumerate(free_ports(4), 2)}
    return {
        **{key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONHOME")},
        **thread_environment(thread_budget()),
        **others,
        "PATH": f"{programs}:{os.environ.get('PATH', '')}",
        "PYTHONPATH": f"{ROOT}:{SERVERS}",
        "PORT": str(port),
        "SCRATCH": scratch,
        processes.MARK: mark,
        "FRUITSTAND_PEER": str(settings),
        # Turn telemetry off.
        "BENTOML_DO_NOT_TRACK": "True",
        "RAY_USAGE_STATS_ENABLED": "0",
        "LITSERVE_DISABLE_TELEMETRY": "1",
    }


def wait_for_answer(target: Target, started: float, mark: str, log: Path) -> None:
    """Wait until the first image is answered.

    Raises:
        ServerError: it has exited, or took too long.
    """
    said = "it has exited"
    while time.monotonic() - started < START_TIMEOUT_S and _lives(mark):
        try:
            asyncio.run(_first(target))
            return
        except (OSError, aiohttp.ClientError, FruitstandError, ValueError, KeyError) as exc:
            said = str(exc)
            time.sleep(0.1)
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    raise ServerError(f"no answer after the start: {said}; its log ends with: {' | '.join(lines[-3:])}")


def _lives(mark: str) -> bool:
    """Asked twice: a process in the middle of `exec` has no environment that could be read."""
    if processes.marked(mark):
        return True
    time.sleep(0.5)
    return bool(processes.marked(mark))


async def _first(target: Target) -> None:
    async with target.connected() as send:
        target.label(await send(0) or b"")
