"""A real HTTP proxy that records every byte it is sent, and opens tunnels where it is told to."""

import contextlib
import socket
import threading
from collections.abc import Iterator

PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")


class RecordingProxy:
    """Listens on loopback until it is closed."""

    def __init__(self, tunnel_port: int | None) -> None:
        """Listen; CONNECT opens a tunnel to `tunnel_port` of this machine, or without one is refused."""
        self.received = bytearray()
        """Everything that clients sent."""
        self._tunnel_port = tunnel_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """As the environment names it."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            request = client.recv(65536)
            self.received += request
            if self._tunnel_port is None or not request.startswith(b"CONNECT "):
                client.sendall(b"HTTP/1.1 502 no tunnel\r\ncontent-length: 0\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", self._tunnel_port)) as server:
                client.sendall(b"HTTP/1.1 200 connected\r\n\r\n")
                back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                back.start()
                while content := client.recv(65536):
                    self.received += content
                    server.sendall(content)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while content := source.recv(65536):
            target.sendall(content)


@contextlib.contextmanager
def recording_proxy(*, tunnel_port: int | None = None) -> Iterator[RecordingProxy]:
    """A running proxy."""
    proxy = RecordingProxy(tunnel_port)
    try:
        yield proxy
    finally:
        proxy.close()
