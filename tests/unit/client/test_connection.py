"""The clients against a real gRPC server that misbehaves as told; the blocking and the async one alike."""

import asyncio
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from export.corpus import encode, pattern
from fruitstand.errors import UsageError
from fruitstand_client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    ImageRejected,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    Prediction,
    RequestCancelled,
    RequestFailed,
    RequestRejected,
    ServerFailure,
    ServerUnreachable,
    ServerUntrusted,
    Tls,
    Unauthenticated,
)
from fruitstand_client.retry import MAX_TOKENS
from tests.certificates import Certificate, make_certificate, server_credentials
from tests.model_server import KillableServer, Received, model_server

Classify = Callable[..., list[Prediction]]

ERRORS = {
    "CANCELLED": RequestCancelled,
    "UNKNOWN": ServerFailure,
    "INVALID_ARGUMENT": ImageRejected,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "NOT_FOUND": ModelNotFound,
    "ALREADY_EXISTS": RequestRejected,
    "PERMISSION_DENIED": PermissionDenied,
    "RESOURCE_EXHAUSTED": Overloaded,
    "FAILED_PRECONDITION": RequestRejected,
    "ABORTED": ServerFailure,
    "OUT_OF_RANGE": RequestRejected,
    "UNIMPLEMENTED": RequestRejected,
    "INTERNAL": ServerFailure,
    "UNAVAILABLE": ServerUnreachable,
    "DATA_LOSS": ServerFailure,
    "UNAUTHENTICATED": Unauthenticated,
}
TEXTS = [
    pytest.param("UNAVAILABLE", "Exceeds maximum queue size", Overloaded, id="queue_full"),
    pytest.param("UNAVAILABLE", "Request timeout expired", Overloaded, id="queue_timeout"),
    pytest.param("UNAVAILABLE", "Request for unknown model: 'x'", ModelNotFound, id="no_model"),
    pytest.param("INTERNAL", "[/opt/x.cc] DALI error: nvImageCodec failure", ImageRejected, id="native_dali"),
    pytest.param("RESOURCE_EXHAUSTED", "message larger than max (9 vs. 4)", ImageRejected, id="too_long"),
]


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    """Forty files of different lengths."""
    jpeg = encode(pattern(50, 40))
    return [
        jpeg[:2] + b"\xff\xfe" + struct.pack(">H", 2 + size) + bytes(size) + jpeg[2:] for size in range(40)
    ]


def blocking(url: str, sent: list, **settings: object) -> list[Prediction]:
    """Classify with the blocking client."""
    with Client(url, **settings) as client:
        return client.classify(sent, top_k=2)


def awaiting(url: str, sent: list, **settings: object) -> list[Prediction]:
    """Classify with the async client."""

    async def ask() -> list[Prediction]:
        async with AsyncClient(url, **settings) as client:
            return await client.classify(sent, top_k=2)

    return asyncio.run(ask())


@pytest.fixture(params=[blocking, awaiting])
def classify(request: pytest.FixtureRequest) -> Classify:
    """Either client."""
    return request.param


def labels(predictions: list[Prediction]) -> list[str | None]:
    """What the server called each image: its length."""
    return [one.label for one in predictions]


def lengths(sent: list[bytes]) -> list[str]:
    """What it should have called them."""
    return [str(len(one)) for one in sent]


def aborting(status: str, text: str = "as told", **trailers: str) -> Callable:
    """A server that says always the same."""

    def behave(received: Received, context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata(tuple(trailers.items()))
        context.abort(grpc.StatusCode[status], text)

    return behave


def failing_first(count: int, status: str, text: str = "as told", **trailers: str) -> Callable:
    """A server that refuses its first requests and answers then."""
    refusals = iter(range(count))
    always = aborting(status, text, **trailers)
    return lambda received, context: always(received, context) if next(refusals, None) is not None else None


def test_every_status_of_grpc_is_known() -> None:
    """A status added by gRPC makes this test fail, not a user's program."""
    assert set(ERRORS) == {code.name for code in grpc.StatusCode} - {"OK"}


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [*(pytest.param(status, "as told", kind, id=status) for status, kind in ERRORS.items()), *TEXTS],
)
def test_every_status_of_a_server_becomes_an_error_of_ours(
    status: str, text: str, kind: type[RequestFailed], images: list[bytes]
) -> None:
    """With one line of text, the status and the request's id; no path of the server."""
    with model_server(aborting(status, text)) as server, Client(server.url) as client:
        with pytest.raises(RequestFailed) as raised:
            client.classify_batch(images[:1])
        assert isinstance(raised.value, kind)
        assert raised.value.status == status
        assert raised.value.request_id == server.received[0].id != ""
        assert len(str(raised.value).splitlines()) == 1
        assert "/opt" not in str(raised.value)


def test_answers_keep_their_order_and_are_named(
    classify: Classify, images: list[bytes], tmp_path: Path
) -> None:
    """Paths and contents mixed, requests finishing in another order than they were sent."""

    def slow_first(received: Received, context: grpc.ServicerContext) -> None:
        time.sleep(0.2 if len(images[0]) in map(len, received.images) else 0)

    path = tmp_path / "named.jpg"
    path.write_bytes(images[3])
    sent = [*images[:3], path, *images[4:]]
    with model_server(slow_first) as server:
        predictions = classify(server.url, sent, batch_size=4, in_flight=3)
        assert max(len(one.images) for one in server.received) == 4
    assert labels(predictions) == lengths(images)
    assert predictions[3].path == str(path)
    assert all(one.model_version == "7" and len(one.top_k) == 2 for one in predictions)


@pytest.mark.parametrize("status", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
def test_not_now_is_asked_again_until_it_is_answered(
    classify: Classify, status: str, images: list[bytes]
) -> None:
    """With pauses that grow; every attempt has its own id and less time than the one before."""
    with model_server(failing_first(3, status, "Exceeds maximum queue size")) as server:
        assert labels(classify(server.url, images[:2])) == lengths(images[:2])
        assert len({one.id for one in server.received}) == 4
        left = [one.time_left_s for one in server.received]
    assert left == sorted(left, reverse=True)
    assert left[0] - left[-1] > 0.5 * (0.05 + 0.1 + 0.2)


@pytest.mark.parametrize("status", ["INTERNAL", "ABORTED", "UNAUTHENTICATED", "FAILED_PRECONDITION"])
def test_other_failures_are_told_at_once(classify: Classify, status: str, images: list[bytes]) -> None:
    """The server is asked once."""
    with model_server(aborting(status)) as server:
        with pytest.raises(ERRORS[status]):
            classify(server.url, images[:2])
        assert len(server.received) == 1


def test_no_attempt_is_made_past_the_deadline(classify: Classify, images: list[bytes]) -> None:
    """An overloaded server's images have the reason; the time is the caller's, not the backoff's."""
    with model_server(aborting("RESOURCE_EXHAUSTED")) as server:
        started = time.monotonic()
        predictions = classify(server.url, images[:2], deadline_s=0.8)
        assert time.monotonic() - started < 0.8 + 0.5
        assert len(server.received) >= 3
    assert all(isinstance(one.failure, Overloaded) for one in predictions)


def test_one_deadline_limits_the_call_and_the_servers_queue(classify: Classify, images: list[bytes]) -> None:
    """The queue's limit is the shorter one, in microseconds; the caller does not wait longer."""
    released = threading.Event()
    with model_server(lambda received, context: released.wait(10)) as server:
        started = time.monotonic()
        (prediction,) = classify(server.url, images[:1], deadline_s=0.5)
        assert time.monotonic() - started < 2
        released.set()
        (received,) = server.received
    assert isinstance(prediction.failure, DeadlineExceeded)
    assert 0.3e6 < received.timeout_us < 0.5e6


@pytest.mark.parametrize("pushback_ms", ["300", "-1", "soon"])
def test_the_servers_push_back_is_obeyed(classify: Classify, pushback_ms: str, images: list[bytes]) -> None:
    """A number is waited for, anything else ends the attempts."""
    behave = failing_first(
        1, "UNAVAILABLE", "Exceeds maximum queue size", **{"grpc-retry-pushback-ms": pushback_ms}
    )
    with model_server(behave) as server:
        (prediction,) = classify(server.url, images[:1])
        left = [one.time_left_s for one in server.received]
    if pushback_ms == "300":
        assert prediction.failure is None
        assert left[0] - left[1] >= 0.29
    else:
        assert isinstance(prediction.failure, Overloaded)
        assert len(left) == 1


def test_a_server_that_refuses_everything_is_not_asked_several_times_for_each(images: list[bytes]) -> None:
    """The retry budget: after half of its tokens, every request is sent once."""
    with model_server(aborting("RESOURCE_EXHAUSTED", **{"grpc-retry-pushback-ms": "0"})) as server:
        with Client(server.url, batch_size=1) as client:
            client.classify(images[:1])
            spent = len(server.received)
            assert spent == MAX_TOKENS / 2
            client.classify(images[:20])
        assert len(server.received) == spent + 20


def test_only_the_bad_image_fails(classify: Classify, images: list[bytes]) -> None:
    """A refused request is asked in halves; each good image is answered, each bad one named."""
    bad = {images[5], images[6], images[30]}

    def behave(received: Received, context: grpc.ServicerContext) -> None:
        if any(image in bad for image in received.images):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "damaged or truncated")

    with model_server(behave) as server:
        predictions = classify(server.url, images)
        assert len(server.received) < len(images)
    assert [one.error for one in predictions if one.error] == ["damaged or truncated"] * 3
    for image, one in zip(images, predictions, strict=True):
        assert (one.failure is not None) == (image in bad)
        assert one.label == (None if image in bad else str(len(image)))


def test_a_batch_that_another_caller_spoiled_is_asked_again(classify: Classify, images: list[bytes]) -> None:
    """The native DALI backend fails all requests of its batch: one more attempt decides who is to blame."""
    seen: set[bytes] = set()

    def behave(received: Received, context: grpc.ServicerContext) -> None:
        if len(received.images) > 1 or received.images[0] == images[2] or received.images[0] not in seen:
            seen.update(received.images if len(received.images) == 1 else ())
            context.abort(grpc.StatusCode.UNKNOWN, "DALI error: /opt/tritonserver/x.cc failed")

    with model_server(behave) as server:
        predictions = classify(server.url, images[:4])
    assert [one.failure is not None for one in predictions] == [False, False, True, False]
    assert predictions[2].error == "damaged or truncated: the server cannot decode it"


def test_a_truncated_file_is_never_padded(classify: Classify, images: list[bytes]) -> None:
    """Zeros behind it would be decoded as the rest of it, and a cut image be answered."""
    cut = [images[2][:500], encode(pattern(60, 60), "WEBP")[:300], encode(pattern(60, 60), "BMP")[:2000]]
    with model_server() as server:
        assert labels(classify(server.url, [images[0], *cut, images[1]])) == lengths(
            [images[0], *cut, images[1]]
        )
        alone = [one.images for one in server.received if any(image in cut for image in one.images)]
    assert sorted(map(len, alone)) == [1, 1, 1]


def test_a_request_holds_at_most_batch_bytes(classify: Classify) -> None:
    """Counted as they are sent: every image as long as the longest."""
    large = encode(pattern(1200, 1200), "BMP")
    small = encode(pattern(50, 50))
    sent = [small, small, large, small, large, large]
    with model_server() as server:
        assert labels(classify(server.url, sent, batch_bytes=2 * len(large))) == lengths(sent)
        sizes = [len(one.images) * max(map(len, one.images)) for one in server.received]
    assert max(sizes) <= 2 * len(large)
    assert max(sizes) > 4 * 2**20, "gRPC's own limit was not passed"


def test_images_are_taken_only_as_they_are_needed(images: list[bytes]) -> None:
    """However many there are: the window is bounded, and the first answers come before the last image."""
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield images[taken % 40]

    with model_server() as server, Client(server.url, batch_size=4, in_flight=2) as client:
        for number, prediction in enumerate(client.classify_stream(endless())):
            assert prediction.label == str(len(images[(number + 1) % 40]))
            assert taken - number <= (2 * 2 + 1) * 4
            if number == 200:
                break


def test_async_images_are_taken_only_as_they_are_needed(images: list[bytes]) -> None:
    """The same, from an async iterable."""
    taken = 0

    async def endless():
        nonlocal taken
        while True:
            taken += 1
            yield images[taken % 40]

    async def ask(url: str) -> None:
        async with AsyncClient(url, batch_size=4, in_flight=2) as client:
            number = 0
            async for prediction in client.classify_stream(endless()):
                assert prediction.label == str(len(images[(number + 1) % 40]))
                assert taken - number <= (2 * 2 + 1) * 4
                number += 1
                if number == 200:
                    return

    with model_server() as server:
        asyncio.run(ask(server.url))


def test_in_flight_bounds_the_requests_under_way(classify: Classify, images: list[bytes]) -> None:
    """And the bound is reached."""
    lock, now, most = threading.Lock(), 0, 0

    def behave(received: Received, context: grpc.ServicerContext) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1

    with model_server(behave) as server:
        classify(server.url, images, batch_size=2, in_flight=3)
    assert most == 3


def test_no_server_is_one_clear_error_at_once(classify: Classify, images: list[bytes]) -> None:
    """The address is named, and nobody waits for the deadline."""
    started = time.monotonic()
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1.*is it started"):
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


def test_keepalive_settings_reach_the_channel(classify: Classify, images: list[bytes]) -> None:
    """Pings more often than a server allows are answered with the end of the connection: they do arrive."""
    strict = [("grpc.http2.min_ping_interval_without_data_ms", 60_000), ("grpc.http2.max_ping_strikes", 1)]

    def behave(received: Received, context: grpc.ServicerContext) -> None:
        time.sleep(6)

    with (
        model_server(behave, options=strict) as server,
        pytest.raises(RequestFailed, match=r"too_many_pings|Too many pings"),
    ):
        classify(server.url, images[:1], keepalive_s=1, deadline_s=8)


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
        with pytest.raises(ServerUnreachable, match="this client's certificate"):
            classify(server.url, images[:2], tls=Tls(ca=authority.ca_file))


@pytest.mark.parametrize(
    ("presented", "words"),
    [
        pytest.param(
            lambda ca: make_certificate("localhost", ca, days=(-3, -1)), "has expired", id="expired"
        ),
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
        pytest.raises(ServerUnreachable, match="want TLS"),
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


@pytest.mark.parametrize(
    "url", ["", "localhost", "http://localhost:8000", "localhost:99999", "a:1,", "a b:1"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    """With what one looks like."""
    with pytest.raises(UsageError, match="HOST:PORT"):
        Client(url)


@pytest.mark.parametrize(
    "values",
    [
        {"batch_size": 0},
        {"batch_size": 65},
        {"batch_bytes": 1000},
        {"in_flight": 0},
        {"deadline_s": 0},
        {"keepalive_s": 0.1},
    ],
)
def test_client_settings_outside_what_is_allowed_are_refused(values: dict) -> None:
    """Before anything is sent."""
    with pytest.raises(ValueError, match="allowed"):
        Client("127.0.0.1:1", **values)
