"""A cheap HTTP/1.1 client: whole requests over kept connections, so that it can send three times too many."""

import asyncio
import re
from urllib.parse import urlsplit

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)")


class Connections:
    """As many connections to one server as calls are under way; use it in one event loop."""

    def __init__(self, url: str) -> None:
        """Connect to nobody yet.

        Args:
            url: http://HOST:PORT.
        """
        place = urlsplit(url)
        self._place, self._idle = (place.hostname, place.port), list[_Connection]()

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """Send a whole request; returns status and body. A caller that is cancelled closes the connection.

        Raises:
            OSError: nobody listens, or the connection broke.
        """
        connection = self._idle.pop() if self._idle else None
        while connection is not None and connection.transport.is_closing():
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            _, connection = await asyncio.get_running_loop().create_connection(_Connection, *self._place)
        try:
            answer = await connection.ask(request)
        except BaseException:
            connection.transport.abort()
            raise
        if connection.is_kept:
            self._idle.append(connection)
        else:
            connection.transport.close()
        return answer

    def close(self) -> None:
        """Close the idle ones."""
        for connection in self._idle:
            connection.transport.close()


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport
    is_kept = True
    _answer: asyncio.Future[tuple[int, bytes]] | None = None

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        self._received = b""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            return
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = LENGTH.search(head.lower())
        if not end or (length is not None and len(body) < int(length[1])):
            return
        if length is None:
            if not body.endswith(b"0\r\n\r\n"):  # chunked
                return
            body = b"".join(re.split(rb"(?:\A|\r\n)[0-9a-fA-F]+\r\n", body))
        self.is_kept = b"\r\nconnection: close" not in head.lower()
        self._answer.set_result((int(head[9:12]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("closed without an answer"))
