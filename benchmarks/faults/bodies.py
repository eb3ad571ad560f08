"""Bodies that are far too large, bodies that unpack to far more, and connections that hang about."""

import asyncio
import contextlib
import functools
import time
import zlib
from urllib.parse import urlsplit

import aiohttp

from benchmarks.faults.running import Bench, Cell

LARGE_BYTES = 100 * 10**6
BOMB_BYTES = 2**30
PATIENCE_S = 20.0
NUM_CONNECTIONS = 200
HANGING_S = 25.0


async def _post(bench: Bench, body: bytes, headers: dict[str, str]) -> str:
    address = bench.running.url + bench.running.subject.peer.path
    timeout = aiohttp.ClientTimeout(PATIENCE_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(address, data=body, headers=headers) as response,
        ):
            await response.read()
            return str(response.status)
    except (TimeoutError, OSError, aiohttp.ClientError) as exc:
        return "closed" if isinstance(exc, OSError | aiohttp.ClientError) else type(exc).__name__


def _beside(bench: Bench, body: bytes, headers: dict[str, str]) -> Cell:
    before = bench.running.peak_mib()
    with bench.steady() as load:
        time.sleep(1.0)
        status = asyncio.run(_post(bench, body, headers))
        time.sleep(2.0)
    grew = bench.running.peak_mib() - before
    text = f"{status}, {load.ledger.failed} failed, {grew:+.0f} MiB"
    return Cell(text=text, numbers={"status": status, "peak_growth_mib": grew, **load.ledger.numbers()})


def large_body(bench: Bench) -> Cell:
    """An upload of 100 MB, beside a steady load."""
    body, kind = bench.running.subject.peer.payload(bytes(LARGE_BYTES))
    return _beside(bench, body, {"Content-Type": kind})


def gzip_bomb(bench: Bench) -> Cell:
    """1 MB of gzip that unpacks to 1 GiB, beside a steady load."""
    _, kind = bench.running.subject.peer.payload(b"")
    return _beside(bench, _bomb(), {"Content-Type": kind, "Content-Encoding": "gzip"})


@functools.cache
def _bomb() -> bytes:
    packer, piece = zlib.compressobj(wbits=31), bytes(2**24)
    return b"".join([*(packer.compress(piece) for _ in range(BOMB_BYTES // len(piece))), packer.flush()])


def connections(bench: Bench) -> Cell:
    """100 connections that say nothing and 100 that send a byte a second, beside a steady load."""

    async def hang() -> int:
        place = urlsplit(bench.running.url)
        closed = 0

        async def one(is_slow: bool) -> None:
            nonlocal closed
            until = time.monotonic() + HANGING_S
            reader, writer = await asyncio.open_connection(place.hostname, place.port)
            try:
                writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nX-Slow: " if is_slow else b"")
                while time.monotonic() < until:
                    writer.write(b"a" if is_slow else b"")
                    await writer.drain()
                    with contextlib.suppress(TimeoutError):
                        if not await asyncio.wait_for(reader.read(1), 1.0):
                            closed += 1
                            break
            except OSError:
                closed += 1
            writer.close()

        tasks = (one(number % 2 == 0) for number in range(NUM_CONNECTIONS))
        await asyncio.gather(*tasks)
        return closed

    with bench.steady() as load:
        time.sleep(1.0)
        closed = asyncio.run(hang())
    text = f"{load.ledger.failed} failed, {closed} cut off"
    return Cell(text=text, numbers={"closed": closed, **load.ledger.numbers()})
