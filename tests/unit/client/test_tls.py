"""TLS of both clients against a real gRPC server."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fruitstand.errors import UsageError
from fruitstand_client import Client, ServerUnreachable, ServerUntrusted, Tls
from tests.both_clients import Classify, labels, lengths
from tests.model_server import model_server
from tests.nightly.chaos.authority import Certificate, make_certificate, server_credentials


class Authority:
    """A CA, and a server's and a client's certificate of it, as files."""

    def __init__(self, folder: Path) -> None:
        self.ca = make_certificate("ca")
        self.server = make_certificate("localhost", self.ca)
        self.ca_file = self.ca.write(folder / "ca.pem")
        self.client_file = make_certificate("client", self.ca).write(folder / "client.pem", with_key=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Made once."""
    return Authority(tmp_path_factory.mktemp("certificates"))


def test_tls_and_mutual_tls_are_spoken(classify: Classify, authority: Authority, images: list[bytes]) -> None:
    """With the CA's file, and with a certificate of one's own."""
    with model_server(credentials=server_credentials(authority.server), host="localhost") as server:
        sent = classify(server.url, images[:2], tls=Tls(ca=authority.ca_file))
        assert labels(sent) == lengths(images[:2])
        named = Tls(ca=authority.ca_file, server_name="localhost")
        assert labels(classify(f"127.0.0.1:{server.port}", images[:2], tls=named)) == lengths(images[:2])
    mutual = server_credentials(authority.server, clients_of=authority.ca)
    with model_server(credentials=mutual, host="localhost") as server:
        tls = Tls(ca=authority.ca_file, certificate=authority.client_file)
        assert labels(classify(server.url, images[:2], tls=tls)) == lengths(images[:2])
        with pytest.raises(ServerUnreachable, match="a client certificate"):
            classify(server.url, images[:2], tls=Tls(ca=authority.ca_file))


@pytest.mark.parametrize(
    ("presented", "words"),
    [
        pytest.param(lambda ca: make_certificate("localhost", ca, days=(-3, -1)), "expired", id="expired"),
        pytest.param(
            lambda ca: make_certificate("localhost", make_certificate("other")), "issuer", id="issuer"
        ),
        pytest.param(lambda ca: make_certificate("elsewhere", ca), "another name", id="name"),
    ],
)
def test_a_server_that_is_not_to_be_trusted_is_named(
    classify: Classify,
    presented: Callable[[Certificate], Certificate],
    words: str,
    authority: Authority,
    images: list[bytes],
) -> None:
    """In one line that says what to do; it is not asked again."""
    with model_server(credentials=server_credentials(presented(authority.ca)), host="localhost") as server:
        started = time.monotonic()
        with pytest.raises(ServerUntrusted, match=words):
            classify(server.url, images[:2], tls=Tls(ca=authority.ca_file))
        assert time.monotonic() - started < 10


def test_tls_where_none_is_spoken_and_the_reverse_are_told(
    classify: Classify, authority: Authority, images: list[bytes]
) -> None:
    """Both ends of one mistake."""
    with model_server() as server, pytest.raises(ServerUntrusted, match="does not speak TLS"):
        classify(server.url, images[:2], tls=Tls(ca=authority.ca_file))
    with (
        model_server(credentials=server_credentials(authority.server), host="localhost") as server,
        pytest.raises(ServerUnreachable, match="require TLS"),
    ):
        classify(server.url, images[:2])


def test_tls_files_that_are_none_are_refused(tmp_path: Path) -> None:
    """Before anything is sent."""
    with pytest.raises(UsageError, match="cannot be read"):
        Client("h:1", tls=Tls(ca=tmp_path / "nothing.pem"))
    (tmp_path / "wrong.pem").write_text("no certificate")
    with pytest.raises(UsageError, match="no certificate in it"):
        Client("h:1", tls=Tls(ca=tmp_path / "wrong.pem"))
    only = make_certificate("client").write(tmp_path / "only.pem")
    with pytest.raises(UsageError, match="no private key in it"):
        Client("h:1", tls=Tls(certificate=only))
