"""Load the server at 70 % of its peak for half an hour: tail latency and memory growth.

    python -m benchmarks.steady --repository REPOSITORY --images FOLDER [--minutes 30] [--out FILE]

Open loop: single-image requests arrive at random times (Poisson), and latency counts from the time a request
was due. p99 is compared with the median of a lone request. Memory is that of the server and its backends; its
growth is a least-squares fit after the first sixth. Shared memory left behind after the stop is listed.
"""

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import grpc.aio
import numpy as np
import typer

from benchmarks.in_process import read_images
from benchmarks.load import NothingMeasured, Target, closed_loop, is_refusal
from fruitstand.artefacts import write_json
from fruitstand.machine.memory import own_mib, resident_mib
from fruitstand.machine.provenance import provenance
from fruitstand.stages import command_line, served

SHARE = 0.7
PEAK_IN_FLIGHT = 64
EVERY_S = 5.0
"""Seconds between two measurements of memory."""
WARM_UP_SHARE = 1 / 6
SHARED_MEMORY = Path("/dev/shm")
PREFIX = "fruitstand-serve-"
"""Prefix of the shared-memory regions of `fruitstand serve`."""


@dataclass(slots=True)
class Arrivals:
    """Measurements of the open loop."""

    latencies_ms: list[float] = field(default_factory=list)
    due_s: list[float] = field(default_factory=list)
    """Time each of these requests was due, seconds since the start."""
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Pairs of seconds since the start and MiB."""
    refused: int = 0
    failed: list[str] = field(default_factory=list)
    """gRPC status of the other failed calls."""


def main(
    repository: Annotated[Path, typer.Option(help="Model repository to serve.")],
    images: Annotated[Path, typer.Option(help="Folder with images.")],
    minutes: Annotated[float, typer.Option(min=0.1, help="Length of the load.")] = 30.0,
    seconds: Annotated[
        float, typer.Option(min=0.5, help="Seconds to measure a lone request, and the peak.")
    ] = 10.0,
    out: Annotated[Path | None, typer.Option(help="Result file.")] = None,
) -> None:
    """Measure one server and write the result."""
    files = [file.tobytes() for file in read_images(images)]
    before = _regions()
    with (
        TemporaryDirectory(prefix="fruitstand-steady-") as folder,
        served(repository, log=Path(folder) / "triton.log") as url,
    ):
        target = Target(url, files)
        asyncio.run(closed_loop(target, PEAK_IN_FLIGHT, seconds))  # engines compile for each batch size
        alone = asyncio.run(closed_loop(target, 1, seconds))
        peak = asyncio.run(closed_loop(target, PEAK_IN_FLIGHT, seconds))
        rate = SHARE * peak.images_per_s
        arrivals = asyncio.run(arrive(target, rate=rate, seconds=60 * minutes, memory_mib=_memory_mib))
    result = {
        "settings": {
            "minutes": minutes,
            "seconds": seconds,
            "share": SHARE,
            "peak_in_flight": PEAK_IN_FLIGHT,
        },
        "peak_images_per_s": peak.images_per_s,
        "alone_p50_ms": alone.p50_ms,
        **summarise(arrivals, alone_p50_ms=alone.p50_ms, seconds=60 * minutes),
        "left_in_shared_memory": sorted(_regions() - before),
    }
    print(json.dumps(result, indent=2))
    if out is not None:
        write_json(out, {**provenance(), **result})


async def arrive(target: Target, *, rate: float, seconds: float, memory_mib: Callable[[], float]) -> Arrivals:
    """Send single images at random times.

    Args:
        target: the server and its single-image requests.
        rate: requests/s on average.
        seconds: length of the load; then waits for the last answers.
        memory_mib: returns the server's memory, called every `EVERY_S`.
    """
    seen, dice = Arrivals(), random.Random(0)
    async with target.connected() as send, asyncio.TaskGroup() as calls:

        async def one(number: int, due: float) -> None:
            try:
                await send(number % target.num_requests)
            except grpc.aio.AioRpcError as exc:
                if is_refusal(exc):
                    seen.refused += 1
                else:
                    seen.failed.append(exc.code().name)
                return
            seen.latencies_ms.append((time.perf_counter() - due) * 1e3)
            seen.due_s.append(due - started)

        started = due = time.perf_counter()
        number, look_at = 0, started
        while due < started + seconds:
            due += dice.expovariate(rate)
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            calls.create_task(one(number, due))
            number += 1
            if due >= look_at:
                seen.memory.append((due - started, memory_mib()))
                look_at += EVERY_S
    return seen


def summarise(seen: Arrivals, *, alone_p50_ms: float, seconds: float) -> dict[str, Any]:
    """Latency and memory after the warm-up.

    Args:
        seen: measurements of the load.
        alone_p50_ms: median latency of a lone request.
        seconds: length of the load.

    Raises:
        NothingMeasured: no request was answered after the warm-up.
    """
    from_s = WARM_UP_SHARE * seconds
    latencies = np.array(seen.latencies_ms)[np.array(seen.due_s) >= from_s]
    if len(latencies) == 0:
        raise NothingMeasured("nothing was answered after the warm-up; is the server there?")
    p50, p99 = np.percentile(latencies, (50, 99))
    at_s, mib = np.array([one for one in seen.memory if one[0] >= from_s]).T
    slope = float(np.polyfit(at_s / 3600, mib, 1)[0]) if len(at_s) > 1 else None
    return {
        "requests": len(seen.latencies_ms) + seen.refused + len(seen.failed),
        "refused": seen.refused,
        "failed": dict(Counter(seen.failed)),
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "p99_over_alone_p50": round(float(p99) / alone_p50_ms, 2),
        "memory_mib": {"first": round(float(mib[0]), 1), "last": round(float(mib[-1]), 1)},
        "memory_mib_per_hour": None if slope is None else round(slope, 2),
    }


def _memory_mib() -> float:
    """Memory of all processes that this one started; shared pages count once per process."""
    return resident_mib(os.getpid()) - own_mib(os.getpid())


def _regions() -> set[str]:
    """Names of our servers' shared-memory regions."""
    return {path.name for path in SHARED_MEMORY.glob(f"{PREFIX}*")}


if __name__ == "__main__":
    command_line(main)
