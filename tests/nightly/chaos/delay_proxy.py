"""A TCP proxy that delays what passes, or swallows it: a bad network, without the rights to make one."""

import asyncio
import threading
from types import TracebackType


class DelayProxy:
    """Between a client and a server, on a free port; in a thread of its own."""

    def __init__(self, url: str, *, delay_s: float) -> None:
        """Prepare it.

        Args:
            url: HOST:PORT of the server.
            delay_s: of every piece, in each direction half of it.
        """
        self._host, _, port = url.rpartition(":")
        self._port, self._delay_s = int(port), delay_s
        self._open: set[asyncio.StreamWriter] = set()
        self._dead: set[asyncio.StreamWriter] = set()
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self.url = ""

    def __enter__(self) -> "DelayProxy":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def swallow(self) -> None:
        """Let the connections that are open stand, and nothing pass on them; new ones work."""
        self._dead |= self._open

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))  # transports end in the loop's next round
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._host, self._port)
        self._open |= {writer, back}
        try:
            await asyncio.gather(self._pass(reader, back), self._pass(there, writer), return_exceptions=True)
        except asyncio.CancelledError:  # all ends; who awaits this would report it
            pass
        finally:
            for one in (writer, back):
                self._open.discard(one)
                one.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pending: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def send() -> None:
            while True:
                due, piece = await pending.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                if not piece:
                    writer.close()
                    return
                writer.write(piece)
                await writer.drain()

        sending = asyncio.create_task(send())
        try:
            while True:
                piece = await reader.read(65_536)
                if writer not in self._dead:
                    pending.put_nowait((self._loop.time() + self._delay_s / 2, piece))
                if not piece:
                    break
            await sending
        finally:
            sending.cancel()
