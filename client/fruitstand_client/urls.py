"""Fetch an image from the web: http and https only, with limits on addresses, bytes and time."""

import contextlib
import http.client
import socket
import threading
import time
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    Request,
)

from fruitstand.connections import EnvironmentProxies
from fruitstand_client.address_rule import AddressRule
from fruitstand_client.errors import ImageRejected

TIMEOUT_S = 10.0
"""For the whole of one image: connections, redirects, headers and content."""
CHUNK_BYTES = 65_536


def fetch(url: str, max_bytes: int) -> bytes:
    """Fetch a URL's content.

    The URL may name any server but one with a link-local address (169.254.0.0/16, fe80::/10); a redirect from
    a public address may only lead to another public one. A proxy of the environment (http_proxy) looks the
    names up itself, and the addresses are its to allow.

    Args:
        url: http or https; so is every address it redirects to.
        max_bytes: of the content; more is not read.

    Raises:
        ImageRejected: another scheme, an address that is not allowed, no answer, not in time (looking a name
            up has the resolver's own limit), too long, or shorter than announced.
    """
    scheme = urlsplit(url).scheme.lower()
    if scheme not in ("http", "https"):
        raise ImageRejected(f"a URL of scheme {scheme!r}: only http and https are fetched")
    with _Limits(TIMEOUT_S) as limits:
        opener = OpenerDirector()
        # Without handlers for files and FTP a redirect cannot lead there.
        for handler in (
            EnvironmentProxies(),
            _PlainHandler(limits),
            _TlsHandler(limits),
            HTTPDefaultErrorHandler(),
            HTTPRedirectHandler(),
            HTTPErrorProcessor(),
        ):
            opener.add_handler(handler)
        try:
            with opener.open(url, timeout=TIMEOUT_S) as response:
                content = _read(response, max_bytes)
            limits.left_s()  # an end without a length may be the one that the limit made
            return content
        except HTTPError as exc:
            raise ImageRejected(f"cannot be fetched: HTTP status {exc.code}") from exc
        except (URLError, OSError, http.client.HTTPException, ValueError) as exc:
            reason: object = limits.spent or getattr(exc, "reason", exc)
            raise ImageRejected(f"cannot be fetched: {reason}") from exc


def _read(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    too_long = ImageRejected(f"too many bytes: at most {max_bytes} are allowed")
    if (response.length or 0) > max_bytes:
        raise too_long
    content = bytearray()
    while chunk := response.read1(CHUNK_BYTES):
        content += chunk
        if len(content) > max_bytes:
            raise too_long
    if response.length:
        raise http.client.HTTPException(f"ends {response.length} bytes too early")
    return bytes(content)


class _Limits:
    """One fetch's end and its connections, which are shut down when it comes.

    A socket's own timeout starts anew with every byte, so that a server which drips them is never late.
    """

    def __init__(self, timeout_s: float) -> None:
        self.rule = AddressRule()
        self._timeout_s = timeout_s
        self._end = time.monotonic() + timeout_s
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(timeout_s, self._shut_down)
        self._timer.daemon = True

    def __enter__(self) -> "_Limits":
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()
        for one in self._sockets:
            one.close()

    @property
    def spent(self) -> str:
        """What to say when the time is over; nothing before."""
        return f"not complete within {self._timeout_s:.0f} s" if time.monotonic() >= self._end else ""

    def left_s(self) -> float:
        """Time that is left.

        Raises:
            TimeoutError: none is.
        """
        if self.spent:
            raise TimeoutError(self.spent)
        return self._end - time.monotonic()

    def watch(self, connected: socket.socket) -> None:
        """Let a connection end with the time; TLS takes the socket itself over, so a copy is kept."""
        self._sockets.append(connected.dup())
        self.left_s()  # the timer may have looked before

    def _shut_down(self) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class _Connection(http.client.HTTPConnection):
    """Connects to the addresses that were looked at."""

    limits: _Limits
    is_proxy: bool

    def connect(self) -> None:
        name = self.host
        addresses = [name]
        if self.is_proxy:
            self.limits.rule.trust_proxy()
        else:
            addresses = self.limits.rule.resolve(name, self.port)
        failure: OSError | None = None
        for address in addresses:
            self.host, self.timeout = address, self.limits.left_s()
            try:
                super().connect()
            except OSError as exc:
                failure = exc
            else:
                self.limits.watch(self.sock)
                return
            finally:
                self.host = name  # what the certificate has to be for
        assert failure is not None  # a name that is found has an address
        raise failure


class _TlsConnection(http.client.HTTPSConnection, _Connection):
    """The same; its `connect` calls the one above, and then speaks TLS."""


class _PlainHandler(HTTPHandler):
    def __init__(self, limits: _Limits) -> None:
        super().__init__()
        self._limits = limits

    def http_open(self, req: Request) -> http.client.HTTPResponse:
        return self.do_open(_maker(_Connection, self._limits, req), req)


class _TlsHandler(HTTPSHandler):
    def __init__(self, limits: _Limits) -> None:
        super().__init__()
        self._limits = limits

    def https_open(self, req: Request) -> http.client.HTTPResponse:
        return self.do_open(_maker(_TlsConnection, self._limits, req), req)


def _maker(kind: type[_Connection], limits: _Limits, request: Request) -> Any:
    """What urllib makes a request's connection with."""

    def make(host: str, **settings: Any) -> _Connection:
        connection = kind(host, **settings)
        connection.limits = limits
        # Where TLS goes through a proxy, urllib says so nowhere else.
        connection.is_proxy = request.has_proxy() or getattr(request, "_tunnel_host", None) is not None
        return connection

    return make
