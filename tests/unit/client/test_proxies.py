"""The environment's proxies: loopback never goes through one, and none ever sees an API key."""

import urllib.error
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from fruitstand.errors import UsageError
from fruitstand.network.connections import (
    direct_environment,
    fetch_page,
    is_loopback,
    open_channel,
    open_triton,
)
from fruitstand_client import Client, RequestFailed, ServerUnreachable, Tls
from tests.both_clients import Classify, labels, lengths
from tests.model_server import model_server
from tests.nightly.chaos.authority import make_certificate, server_credentials
from tests.recording_proxy import PROXY_VARIABLES, RecordingProxy, recording_proxy

KEY = "a-secret-api-key"


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingProxy]:
    """In every variable that gRPC and urllib read."""
    with recording_proxy() as running:
        for name in PROXY_VARIABLES:
            monkeypatch.setenv(name, running.url)
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield running


@pytest.fixture
def page() -> Iterator[str]:
    """The URL of a page on loopback."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"the page")

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_never_goes_through_a_proxy(
    classify: Classify, images: list[bytes], proxy: RecordingProxy, host: str
) -> None:
    """Nor does the API key, which is sent there in clear text."""
    with model_server() as server:
        url = f"{host}:{server.port}"
        assert labels(classify(url, images[:2], api_key=KEY)) == lengths(images[:2])
        assert server.received[0].metadata["x-api-key"] == KEY
    assert proxy.received == b""


def test_a_list_of_servers_is_reached_directly(
    classify: Classify, images: list[bytes], proxy: RecordingProxy
) -> None:
    """GRPC would ask the proxy for a connection to all of them at once."""
    with model_server() as one, model_server() as two:
        url = f"{one.url},{two.url}"
        assert labels(classify(url, images, batch_size=2)) == lengths(images)
    assert proxy.received == b""


def test_every_other_channel_to_loopback_is_direct_too(images: list[bytes], proxy: RecordingProxy) -> None:
    """The readiness probe, promotion, the replicas' canary and the statistics open theirs with these."""
    with model_server() as server:
        with open_channel(server.url) as channel:
            assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=20) == b"\x08\x01"
        triton = open_triton(server.url)
        with pytest.raises(Exception, match="UNIMPLEMENTED"):  # it answers, though not this
            triton.is_server_ready(client_timeout=20)
        triton.close()
    assert proxy.received == b""


def test_elsewhere_the_proxy_is_used_unless_no_proxy_names_the_host(
    images: list[bytes], proxy: RecordingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is the proxy's to look up."""
    through = pytest.raises(
        ServerUnreachable, match=r"server\.invalid:8001 through the proxy in grpc_proxy: no"
    )
    with Client("server.invalid:8001", deadline_s=5) as client, through:
        client.classify_batch(images[:1])
    assert proxy.received.startswith(b"CONNECT server.invalid:8001 ")
    del proxy.received[:]
    monkeypatch.setenv("no_proxy", "server.invalid")
    direct = pytest.raises(RequestFailed, match=r"server\.invalid:8001: no")
    with Client("server.invalid:8001", deadline_s=5) as client, direct:
        client.classify_batch(images[:1])
    assert proxy.received == b""


def test_a_proxy_carries_an_api_key_only_inside_tls(
    classify: Classify, images: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tunnel works, the server sees the key, and the proxy has read the address and nothing else."""
    ca = make_certificate("ca")
    tls = Tls(ca=ca.write(tmp_path / "ca.pem"))
    with (
        model_server(credentials=server_credentials(make_certificate("server.invalid", ca))) as server,
        recording_proxy(tunnel_port=server.port) as proxy,
    ):
        monkeypatch.setenv("http_proxy", proxy.url)
        url = f"server.invalid:{server.port}"
        assert labels(classify(url, images[:2], tls=tls, api_key=KEY)) == lengths(images[:2])
        assert server.received[0].metadata["x-api-key"] == KEY
        assert proxy.received.startswith(f"CONNECT {url} ".encode())
        assert KEY.encode() not in proxy.received
        del proxy.received[:]
        with pytest.raises(UsageError, match="only sent over TLS"):
            Client(url, api_key=KEY)
        assert proxy.received == b""


def test_pages_on_loopback_are_fetched_directly(page: str, proxy: RecordingProxy) -> None:
    """Metrics, readiness, and an image that a user names by a URL of this machine."""
    assert fetch_page(page, timeout_s=20) == b"the page"
    assert proxy.received == b""
    with pytest.raises(urllib.error.HTTPError, match="no tunnel"):
        fetch_page("http://server.invalid/", timeout_s=20)
    assert proxy.received.startswith(b"GET http://server.invalid/ ")


def test_other_programs_are_told_that_loopback_is_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what the environment said before."""
    monkeypatch.setenv("no_proxy", "a.example")
    monkeypatch.setenv("no_grpc_proxy", "b.example")
    environment = direct_environment()
    assert environment["no_proxy"] == "a.example,localhost,127.0.0.1,::1"
    assert environment["no_grpc_proxy"] == "b.example,localhost,127.0.0.1,::1"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "LOCALHOST", "a.localhost"])
def test_names_of_this_machine_are_loopback(host: str) -> None:
    """Whoever writes them."""
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "localhost.example", "server", "0.0.0.0", "::"])
def test_other_names_are_not_loopback(host: str) -> None:
    """Though some of them may lead here."""
    assert not is_loopback(host)


def test_no_other_module_opens_channels_or_pages() -> None:
    """A connection made elsewhere would obey the environment's proxies again."""
    root = Path(__file__).parents[3]
    stages = [
        "fruitstand",
        "client",
        "training",
        "export",
        "serving",
        "deploy",
        "loadtests",
        "monitoring",
        "benchmarks",
    ]
    pattern = ("insecure_channel(", "secure_channel(", "InferenceServerClient(", "urlopen(")
    found = {
        str(path.relative_to(root))
        for stage in stages
        for path in (root / stage).rglob("*.py")
        if any(call in path.read_text() for call in pattern)
    }
    # An init container has Python alone, and its archive is outside of the cluster.
    assert found == {"fruitstand/network/connections.py", "deploy/kubernetes/base/fetch_models.py"}
