"""Images from the web: a real server that moves, drips, stops early, and sends too much."""

import contextlib
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import fruitstand_client.urls
from fruitstand.sample_images import encode, pattern
from fruitstand_client import ImageRejected
from fruitstand_client.address_rule import AddressRule
from fruitstand_client.images import MAX_ENCODED_BYTES, read_image
from tests.nightly.chaos.authority import make_certificate

JPEG = encode(pattern(60, 40))


class Web(http.server.BaseHTTPRequestHandler):
    """A few addresses."""

    def do_GET(self) -> None:
        """As http.server names it."""
        answers = {
            "/good.jpg": (200, JPEG, {}),
            "/moved": (302, b"", {"Location": "/good.jpg"}),
            "/to-file": (302, b"", {"Location": "file:///etc/passwd"}),
            "/to-ftp": (302, b"", {"Location": "ftp://127.0.0.1/x"}),
            "/to-link-local": (302, b"", {"Location": "http://169.254.169.254/latest/meta-data/"}),
            "/short": (200, JPEG[:-10], {"Content-Length": str(len(JPEG))}),
            "/slow": (200, b"", {}),
            "/moved-to-slow": (302, b"", {"Location": "/slow"}),
            "/large": (200, b"", {}),
            "/said-large": (200, b"", {"Content-Length": str(MAX_ENCODED_BYTES + 1)}),
        }
        if self.path == "/slow-header":
            self.drip(b"HTTP/1.0 200 OK\r\nX: ")
        path = self.path.removeprefix("http://nowhere.invalid")  # a proxy is asked for a whole URL
        status, body, headers = answers.get(path, (404, b"", {}))
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)
        if self.path == "/large":
            with contextlib.suppress(OSError):
                self.wfile.write(bytes(MAX_ENCODED_BYTES + 100_000))
        if self.path == "/slow":
            self.drip()

    def drip(self, start: bytes = b"") -> None:
        """Send a byte now and then, until the other end has enough or the test is over."""
        with contextlib.suppress(OSError):
            self.wfile.write(start)
            while not self.server.stopped.wait(0.05):  # type: ignore[attr-defined]
                self.wfile.write(b"x")

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of such a server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.stopped = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server.server_port
    server.stopped.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine needs for other servers."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def web() -> Iterator[str]:
    """A web server's address."""
    with serving() as port:
        yield f"http://127.0.0.1:{port}"


def test_a_certificate_has_to_be_for_the_name_and_not_for_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection goes to an address that was looked at; TLS asks for the name in the URL."""
    authority = make_certificate("ca")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.write(tmp_path / "ca.pem")))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(make_certificate("localhost", authority).write(tmp_path / "s.pem", with_key=True))
    with serving(tls) as port:
        assert read_image(f"https://localhost:{port}/good.jpg", allow_urls=True).content == JPEG
        refused = read_image(f"https://127.0.0.1:{port}/good.jpg", allow_urls=True)
    assert "certificate is not valid for '127.0.0.1'" in str(refused.failure)


def test_a_proxy_of_the_environment_is_asked_for_the_url(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have a private address, and looks the name up itself."""
    monkeypatch.setenv("http_proxy", web)
    read = read_image("http://nowhere.invalid/good.jpg", allow_urls=True)
    assert read.content == JPEG


def test_a_url_is_fetched_only_if_that_is_allowed(web: str) -> None:
    """And through a redirect to another http address."""
    assert "unless that is allowed" in str(read_image(f"{web}/good.jpg").failure)
    for path in ("good.jpg", "moved"):
        read = read_image(f"{web}/{path}", allow_urls=True)
        assert (read.content, read.name) == (JPEG, f"{web}/{path}")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing", "HTTP status 404"),
        ("to-file", "cannot be fetched"),
        ("to-ftp", "cannot be fetched"),
        ("to-link-local", "169.254.169.254 is a link-local address"),
        ("short", "cannot be fetched: ends 10 bytes too early"),
        ("said-large", "too many bytes"),
        ("large", "too many bytes"),
    ],
)
def test_a_url_that_leads_nowhere_good_is_an_error(path: str, words: str, web: str) -> None:
    """Its row says why."""
    assert words in str(read_image(f"{web}/{path}", allow_urls=True).failure)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/a.jpg", "data://image/png,xx"])
def test_no_other_scheme_is_fetched(url: str) -> None:
    """Whatever is allowed."""
    assert "only http and https" in str(read_image(url, allow_urls=True).failure)


@pytest.mark.parametrize("path", ["slow", "moved-to-slow", "slow-header"])
def test_a_server_that_drips_does_not_hold_the_run_up(
    path: str, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with its content, which has no other end, and not with a header."""
    monkeypatch.setattr(fruitstand_client.urls, "TIMEOUT_S", 0.5)
    assert "not complete within" in str(read_image(f"{web}/{path}", allow_urls=True).failure)


def test_a_handshake_that_never_ends_does_not_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes the connection and speaks no TLS."""
    monkeypatch.setattr(fruitstand_client.urls, "TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"https://127.0.0.1:{listening.getsockname()[1]}/a.jpg"
        assert "not complete within" in str(read_image(url, allow_urls=True).failure)


def test_nothing_that_listens_is_told() -> None:
    """At once."""
    assert "Connection refused" in str(read_image("http://127.0.0.1:1/a.jpg", allow_urls=True).failure)


@pytest.mark.parametrize("address", ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1"])
def test_link_local_addresses_are_never_reached(address: str) -> None:
    """However they are written, and whoever names them."""
    with pytest.raises(ImageRejected, match="link-local"):
        AddressRule().resolve(address, 80)


def test_a_public_server_does_not_lead_into_a_private_network() -> None:
    """A URL of a private network may be given, and its server may lead on in there."""
    from_public = AddressRule()
    assert from_public.resolve("1.1.1.1", 80) == ["1.1.1.1"]
    assert from_public.resolve("8.8.8.8", 80) == ["8.8.8.8"]
    for private in ("127.0.0.1", "10.0.0.1", "192.168.1.1", "::1", "::ffff:127.0.0.1", "localhost"):
        with pytest.raises(ImageRejected, match="a redirect from a public address"):
            from_public.resolve(private, 80)
    from_private = AddressRule()
    for address in ("10.0.0.1", "127.0.0.1", "1.1.1.1"):
        assert from_private.resolve(address, 443) == [address]
