"""Addresses and connections of both clients: several servers, servers that die, keys, pings."""

import threading
import time
from collections.abc import Callable, Iterator

import grpc
import pytest

from fruitstand.errors import UsageError
from fruitstand_client import Client, RequestFailed, ServerUnreachable, Tls
from tests.both_clients import Classify, labels, lengths
from tests.model_server import KillableServer, Received, model_server


def test_no_server_is_one_clear_error_at_once(classify: Classify, images: list[bytes]) -> None:
    """The address is named, and nobody waits for the deadline."""
    started = time.monotonic()
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1.*check that it runs"):
        classify("127.0.0.1:1", images)
    assert time.monotonic() - started < 10


def at_image(number: int, images: list[bytes], act: Callable[[], object]) -> Iterator[bytes]:
    """The images; when one is taken, something happens."""
    for index, image in enumerate(images):
        if index == number:
            act()
        yield image


def test_a_killed_server_is_waited_for(classify: Classify, images: list[bytes]) -> None:
    """What was under way is asked again when it is back; every image has its one answer."""
    first, restarted = KillableServer(), []

    def kill() -> None:
        first.kill()
        thread.start()

    thread = threading.Thread(target=lambda: restarted.append(KillableServer(first.port)))
    sent = images * 5
    try:
        assert labels(classify(first.url, at_image(100, sent, kill), batch_size=2)) == lengths(sent)
    finally:
        thread.join(60)
        for server in restarted:
            server.kill()


def test_several_endpoints_take_turns_and_a_dead_one_costs_no_call(
    classify: Classify, images: list[bytes]
) -> None:
    """Both living ones are asked, nothing fails."""
    with model_server() as one, model_server() as two:
        url = f"127.0.0.1:1,{one.url},{two.url}"
        assert labels(classify(url, images * 5, batch_size=2)) == lengths(images * 5)
        assert min(len(one.received), len(two.received)) > 10
        assert len(one.received) + len(two.received) == 100


def test_an_endpoint_that_dies_costs_no_answer(classify: Classify, images: list[bytes]) -> None:
    """Its requests are asked again elsewhere."""
    dying = KillableServer()
    with model_server() as survivor:
        sent = images * 5
        answers = classify(
            f"{dying.url},{survivor.url}", at_image(100, sent, dying.kill), batch_size=2, deadline_s=10
        )
        assert labels(answers) == lengths(sent)


def test_an_api_key_is_sent_with_every_request(classify: Classify, images: list[bytes]) -> None:
    """And none without one."""
    with model_server() as server:
        classify(server.url, images[:1], api_key="a secret")
        classify(server.url, images[:1])
        assert [one.metadata.get("x-api-key") for one in server.received] == ["a secret", None]


@pytest.mark.parametrize("url", ["server:8001", "10.0.0.1:8001", "127.0.0.1:8001,server:8001"])
def test_an_api_key_does_not_leave_this_machine_in_clear_text(url: str) -> None:
    """The line says what to do; with TLS, or to this machine itself, it is sent."""
    with pytest.raises(UsageError, match=r"only sent over TLS; name the CA to trust \(--ca") as raised:
        Client(url, api_key="a secret")
    assert "a secret" not in str(raised.value)
    Client("server:8001", api_key="a secret", tls=Tls()).close()
    Client("127.0.0.1:8001,[::1]:8001,localhost:8001", api_key="a secret").close()


def test_keepalive_settings_reach_the_channel(classify: Classify, images: list[bytes]) -> None:
    """Pings more often than a server allows are answered with the end of the connection: they do arrive."""
    strict = [("grpc.http2.min_ping_interval_without_data_ms", 60_000), ("grpc.http2.max_ping_strikes", 1)]

    def behave(received: Received, context: grpc.ServicerContext) -> None:
        ended = threading.Event()
        context.add_callback(ended.set)
        ended.wait(60)

    with (
        model_server(behave, options=strict) as server,
        pytest.raises(RequestFailed, match=r"too_many_pings|Too many pings"),
    ):
        classify(server.url, images[:1], keepalive_s=1, deadline_s=60)


@pytest.mark.parametrize(
    "url", ["", "localhost", "http://localhost:8000", "localhost:99999", "a:1,", "a b:1"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    """With what one looks like."""
    with pytest.raises(UsageError, match="HOST:PORT"):
        Client(url)
