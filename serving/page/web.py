"""A page to try the served model with, and the few endpoints it needs, on one port of this machine.

Triton sends no CORS headers, so a page from elsewhere may not ask it. This server gives out the page and
forwards what the page asks to Triton's HTTP port: inference, metadata and health, and nothing else.
"""

import errno
import http.client
import json
import threading
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

from fruitstand.contract import FRUIT_CLASSIFIER, Preprocessing
from fruitstand.errors import UsageError

PAGE = Path(__file__).parents[2] / "client" / "web"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
MODEL = f"/v2/models/{FRUIT_CLASSIFIER}"
READABLE = {"/v2", "/v2/health/live", "/v2/health/ready", MODEL, f"{MODEL}/ready"}
INFERENCE = f"{MODEL}/infer"

MAX_HEADER_BYTES = 16 * 2**10
"""Of the JSON in front of the image."""
MAX_BODY_BYTES = Preprocessing().max_encoded_bytes + MAX_HEADER_BYTES
TIMEOUT_S = 30.0
PASSED_HEADERS = ("Content-Type", "Inference-Header-Content-Length")
LOOPBACK = "127.0.0.1"
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class WebServer:
    """The page's server, in threads of this process; holds its port at once, answers once started."""

    def __init__(self, port: int) -> None:
        """Take the port.

        Args:
            port: on loopback; 0 takes a free one.

        Raises:
            UsageError: the port is taken.
        """
        try:
            self._server = _Server((LOOPBACK, port), _Handler)
        except OSError as exc:
            reason = "is in use" if exc.errno == errno.EADDRINUSE else f"cannot be used ({exc.strerror})"
            raise UsageError(
                f"port {port} {reason}; choose another with --web-port, or 0 for a free one"
            ) from exc

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{LOOPBACK}:{self._server.server_port}/"

    def start(self, triton_port: int) -> None:
        """Answer requests, and forward to Triton's HTTP port."""
        self._server.triton_port = triton_port
        threading.Thread(target=self._server.serve_forever, name="web", daemon=True).start()

    def stop(self) -> None:
        """Give the port back."""
        if self._server.triton_port:
            self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> "WebServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    triton_port = 0


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "fruitstand", ""
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_S

    def do_GET(self) -> None:
        """The page, metadata or health."""
        if self._is_foreign():
            return
        if self.path in FILES:
            name, content_type = FILES[self.path]
            self._answer(200, (PAGE / name).read_bytes(), {"Content-Type": content_type})
        elif self.path in READABLE:
            self._forward(b"")
        else:
            self._refuse(404, "no such page")

    def do_POST(self) -> None:
        """An inference."""
        if self._is_foreign():
            return
        if self.path != INFERENCE:
            self._refuse(404, "no such endpoint")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self._refuse(411, "the request does not say how long it is")
        elif int(length) > MAX_BODY_BYTES:
            self._refuse(413, f"too many bytes: {length}, at most {MAX_BODY_BYTES} are taken")
        else:
            self._forward(self.rfile.read(int(length)))

    def _is_foreign(self) -> bool:
        """Refuse what a page from elsewhere asks, also one that has its own name point here (DNS rebinding).

        A link from elsewhere to the page is no question of another page's, and is followed.

        Source:
            Fetch Metadata Request Headers, W3C; RFC 6454, section 7 (Origin).
        """
        hosts = {f"{name}:{self.server.server_port}" for name in (LOOPBACK, "localhost")}
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        is_own = origin is None or origin == f"http://{host}"
        crosses = self.headers.get("Sec-Fetch-Site") == "cross-site"
        is_link = self.command == "GET" and self.headers.get("Sec-Fetch-Mode") == "navigate"
        if host in hosts and is_own and (is_link or not crosses):
            return False
        self._refuse(403, "this page is for this machine only")
        return True

    def _forward(self, body: bytes) -> None:
        connection = http.client.HTTPConnection(LOOPBACK, self.server.triton_port, timeout=TIMEOUT_S)
        try:
            connection.request(self.command, self.path, body or None, _passed(self.headers))
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            self._refuse(502, "the server does not answer")
            return
        finally:
            connection.close()
        self._answer(response.status, content, _passed(response.headers))

    def _refuse(self, status: int, reason: str) -> None:
        """An error in the words of Triton's own; what is left of the request is not read."""
        self.close_connection = True
        self._answer(status, json.dumps({"error": reason}).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, **SECURITY_HEADERS}.items():
            self.send_header(key, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Requests are Triton's to log."""


def _passed(headers: Message) -> dict[str, str]:
    return {key: headers[key] for key in PASSED_HEADERS if key in headers}
