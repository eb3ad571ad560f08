"""The clients against a real gRPC server that misbehaves as told; the blocking and the async one alike."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import grpc
import pytest

from fruitstand.images.synthetic import encode, pattern
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
    Unauthenticated,
)
from fruitstand_client.exchange import LONE_REPEATS, MAX_TOKENS
from fruitstand_client.wire import QUEUE_SHARE
from tests.both_clients import Classify, labels, lengths
from tests.model_server import Received, model_server

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
    pytest.param("UNAVAILABLE", "upstream request timeout", DeadlineExceeded, id="gateway_timeout"),
    pytest.param("UNAVAILABLE", "Request for unknown model: 'x'", ModelNotFound, id="no_model"),
    pytest.param("INTERNAL", "[/opt/x.cc] DALI error: nvImageCodec failure", ImageRejected, id="native_dali"),
    pytest.param("UNKNOWN", "Runtime error: nvImageCodec failure: '#8'", ImageRejected, id="native_codec"),
    pytest.param(
        "UNKNOWN", "Runtime error: Critical error in pipeline:", ImageRejected, id="native_pipeline"
    ),
    pytest.param(
        "UNKNOWN",
        "Runtime error: Critical error in pipeline: CUDA runtime API error cudaErrorIllegalAddress (700)",
        ServerFailure,
        id="native_cuda",
    ),
    pytest.param("RESOURCE_EXHAUSTED", "message larger than max (9 vs. 4)", ImageRejected, id="too_long"),
]


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
        predictions = classify(server.url, images[:2], deadline_s=3)
        assert 3 <= len(server.received) < MAX_TOKENS / 2, "the budget ended them"
        assert all(one.time_left_s > 0 for one in server.received)
    assert all(isinstance(one.failure, Overloaded) for one in predictions)


def test_one_deadline_limits_the_call_and_the_servers_queue(classify: Classify, images: list[bytes]) -> None:
    """The queue's limit is the shorter one, in microseconds; the caller does not wait for the answer."""
    released = threading.Event()
    with model_server(lambda received, context: released.wait(60)) as server:
        (prediction,) = classify(server.url, images[:1], deadline_s=3)
        released.set()
        (received,) = server.received
    assert isinstance(prediction.failure, DeadlineExceeded)
    assert 0 < received.timeout_us <= QUEUE_SHARE * 3e6
    assert 2 * QUEUE_SHARE < 1, "there are two queues"


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


NATIVE_TEXTS = [
    "in ensemble 'fruit_classifier', Runtime error: Critical error in pipeline:\nError in CPU operator"
    " `nvidia.dali.fn.decoders.image`,\nwhich was used in the pipeline definition with the following"
    ' traceback:\n\n  File "/models/image_decode/1/dali.py", line 26, in image_decode\n'
    f"\nencountered:\n\n{reason}\nCurrent pipeline object is no longer valid."
    for reason in ("Failed to decode sample #3 : ", "nvImageCodec failure: '#3'", "Invalid sample_type: 0")
]
"""As the native backend of DALI 2.4 says it, of three kinds of damage."""


def test_neighbours_that_spoil_a_batch_cost_repetitions_and_no_answer(
    classify: Classify, images: list[bytes]
) -> None:
    """The native backend fails all requests of a batch with a bad image: each is asked for again, alone."""
    alone: Counter[bytes] = Counter()
    texts = cycle(NATIVE_TEXTS)

    def behave(received: Received, context: grpc.ServicerContext) -> None:
        (image, *others) = received.images
        alone[image] += not others
        if others or image == images[2] or alone[image] <= LONE_REPEATS:
            context.abort(grpc.StatusCode.UNKNOWN, next(texts))

    with model_server(behave) as server:
        predictions = classify(server.url, images[:4])
    assert [one.error for one in predictions] == [
        None,
        None,
        "damaged or truncated: the server cannot decode it",
        None,
    ]
    assert set(alone.values()) == {1 + LONE_REPEATS}, "the bad image is not asked for more often"


def test_spoiled_batches_do_not_outlast_the_deadline(classify: Classify, images: list[bytes]) -> None:
    """No attempt starts that has no time left."""
    with model_server(aborting("UNKNOWN", NATIVE_TEXTS[0])) as server:
        (prediction,) = classify(server.url, images[:1], deadline_s=0.02)
        assert len(server.received) <= 1
    assert prediction.failure is not None


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


def test_an_async_client_may_be_made_before_its_loop_and_outlive_it(images: list[bytes]) -> None:
    """Each `asyncio.run` is a loop of its own."""
    with model_server() as server:
        client = AsyncClient(server.url, batch_size=2)
        for _ in range(3):
            assert labels(asyncio.run(client.classify(images[:10]))) == lengths(images[:10])
        asyncio.run(client.close())


def test_an_async_client_serves_two_loops_at_once(images: list[bytes]) -> None:
    """In two threads; closing it in one leaves the other's connection alone."""
    both = threading.Barrier(2, timeout=30)

    async def ask() -> list[Prediction]:
        both.wait()
        first = await client.classify(images[:10])
        if threading.current_thread().name.endswith("_0"):
            await client.close()
            both.wait()
            return first
        await asyncio.to_thread(both.wait)
        return first + await client.classify(images[:10])

    with model_server() as server, ThreadPoolExecutor(2) as pool:
        client = AsyncClient(server.url, batch_size=2)
        for answers in pool.map(lambda _: asyncio.run(ask()), range(2)):
            assert set(labels(answers)) == set(lengths(images[:10]))


def test_in_flight_bounds_the_requests_under_way(classify: Classify, images: list[bytes]) -> None:
    """And the bound is reached: none is answered before three are there."""
    lock, now, most = threading.Lock(), 0, 0
    three = threading.Barrier(3, timeout=30)

    def behave(received: Received, context: grpc.ServicerContext) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        three.wait()
        with lock:
            now -= 1

    with model_server(behave) as server:
        sent = images[:36]
        assert labels(classify(server.url, sent, batch_size=2, in_flight=3)) == lengths(sent)
    assert most == 3


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
