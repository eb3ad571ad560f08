"""`POST /classify`, asked by curl and raw sockets, in front of the real server."""

import asyncio
import gzip
import http.client
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import grpc
import jsonschema
import pytest

from fruitstand.contract import FRUIT_RESNET, Preprocessing
from fruitstand.images.synthetic import encode, pattern
from fruitstand.network.connections import fetch_page
from fruitstand_client import Client
from serving.page import web as page
from serving.page.web import WebServer
from serving.triton.embedded import EmbeddedServer
from tests.http_calls import DEADLINE_S, NINE_MB, OPENAPI, Answer, ask
from tests.model_server import Received, model_server


def curl(*arguments: object) -> Answer:
    """What curl is answered with."""
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    command = f"curl --silent --show-error --max-time {DEADLINE_S} --write-out %{{http_code}}".split()
    command += map(str, arguments)
    done = subprocess.run(command, capture_output=True, timeout=2 * DEADLINE_S, check=False)
    return Answer(int(done.stdout[-3:]), {}, done.stdout[:-3])


@pytest.fixture(scope="module")
def url(server: EmbeddedServer) -> Iterator[str]:
    """The HTTP server in front of the real model server."""
    with WebServer(0) as web:
        web.start(server.url)
        yield web.url


@pytest.fixture
def image(test_images: list[Path]) -> Path:
    """One that the model knows."""
    return test_images[0]


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(["--data-binary", "@{}"], id="body"),
        pytest.param(["-H", "Content-Type: image/jpeg", "--data-binary", "@{}"], id="typed_body"),
        pytest.param(["-H", "Transfer-Encoding: chunked", "--data-binary", "@{}"], id="chunked"),
        pytest.param(["-F", "image=@{}"], id="form"),
        pytest.param(["-F", "note=two words", "-F", "image=@{};type=image/jpeg"], id="form_with_a_note"),
        pytest.param(["-X", "POST", "-T", "{}"], id="upload"),
    ],
)
def test_curl_is_answered_as_the_grpc_client_is(
    way: list[str], url: str, server: EmbeddedServer, image: Path
) -> None:
    """The same labels, probabilities and version, in the form that the OpenAPI document promises."""
    with Client(server.url, abstain=True) as client:
        (expected,) = client.classify([image], top_k=3)
    answer = curl(*(word.format(image) for word in way), f"{url}/classify?top_k=3")
    assert answer.status == 200, answer.body
    schema = {"$ref": "#/components/schemas/Prediction", "components": OPENAPI["components"]}
    jsonschema.validate(answer.json, schema)
    wanted = expected.to_dict()
    assert answer.json == {key: wanted[key] for key in answer.json}
    assert len(answer.json["top_k"]) == 3


def form(*files: bytes, boundary: str = "b") -> bytes:
    """A form with files."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="f"; filename="a.jpg"\r\n\r\n'.encode() + one
        for one in files
    ]
    return b"\r\n".join([*parts, f"--{boundary}--\r\n".encode()])


JPEG = encode(pattern(100, 100))
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize(
    ("body", "query", "headers", "status", "reason"),
    [
        pytest.param(b"a letter, no image\n" * 9, "", {}, 400, "not an image", id="text"),
        pytest.param(JPEG[: len(JPEG) // 2], "", {}, 400, "truncated|cut off|end", id="truncated_jpeg"),
        pytest.param(b"", "", {}, 400, "empty", id="empty"),
        pytest.param(bytes(NINE_MB), "", {}, 413, "at most 8388608", id="nine_mb"),
        pytest.param(form(bytes(2**23 + 1)), "", FORM, 413, "at most 8388608", id="large_file_in_a_form"),
        pytest.param(b"{}", "", {"Content-Type": "application/json"}, 415, "image/jpeg", id="json"),
        pytest.param(gzip.compress(JPEG), "", {"Content-Encoding": "gzip"}, 415, "compressed", id="gzip"),
        pytest.param(JPEG, "?top_k=0", {}, 400, "top_k.*1 to", id="top_k_0"),
        pytest.param(JPEG, "?top_k=five", {}, 400, "top_k.*'five'", id="top_k_word"),
        pytest.param(form(JPEG, JPEG), "", FORM, 400, "one file.*got 2", id="two_files"),
        pytest.param(form(), "", FORM, 400, "one file.*got 0", id="no_file"),
        pytest.param(form(JPEG)[:-6], "", FORM, 400, "without its end", id="cut_form"),
        pytest.param(
            form(JPEG), "", {"Content-Type": "multipart/form-data"}, 400, "boundary", id="no_boundary"
        ),
        pytest.param(JPEG, "", {"Origin": "https://evil.example"}, 403, "other sites", id="other_site"),
        pytest.param(JPEG, "", {"Host": "evil.example"}, 403, "other sites", id="rebound_name"),
    ],
)
def test_a_bad_request_gets_its_status_and_one_line(
    url: str, body: bytes, query: str, headers: dict[str, str], status: int, reason: str
) -> None:
    """And the server goes on."""
    answer = ask(f"{url}/classify{query}", body, headers)
    assert answer.status == status
    assert re.search(reason, answer.error), answer.error
    assert str(status) in OPENAPI["paths"]["/classify"]["post"]["responses"]
    assert ask(f"{url}/classify", JPEG).status == 200


def test_what_does_not_exist_is_named(url: str) -> None:
    """As is the method that a path takes."""
    assert ask(f"{url}/predict").status == 404
    answer = ask(f"{url}/classify")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert ask(f"{url}/openapi.json", b"x").status == 405


def raw(url: str) -> socket.socket:
    """A connection."""
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), DEADLINE_S)


def test_a_body_that_never_ends_is_refused_at_the_limit(url: str) -> None:
    """It says nothing of its length; what comes after the limit is not kept."""
    with raw(url) as connection:
        head = f"POST /classify HTTP/1.1\r\nHost: {url.removeprefix('http://')}\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        connection.settimeout(0.001)
        received, sent = b"", 0
        while not received:
            connection.settimeout(DEADLINE_S)
            connection.sendall(chunk)
            sent += len(chunk)
            connection.settimeout(0.001)
            try:
                received = connection.recv(4096)
            except TimeoutError:
                assert sent < 10 * NINE_MB
    assert received.startswith(b"HTTP/1.1 413 ")


def test_a_client_that_stalls_is_cut_off(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its header, in its body, and between two requests; others are answered meanwhile."""
    monkeypatch.setattr(page, "BODY_S", 1.0)
    monkeypatch.setattr(page, "IDLE_S", 1.0)
    with WebServer(0) as web:
        web.start(server.url)
        head = f"Host: 127.0.0.1:{web.port}\r\n"
        with raw(web.url) as silent, raw(web.url) as in_header, raw(web.url) as in_body, raw(web.url) as idle:
            in_header.sendall(b"POST /classify HTTP/1.1\r\nHo")
            in_body.sendall(f"POST /classify HTTP/1.1\r\n{head}Content-Length: 5000\r\n\r\nx".encode())
            idle.sendall(f"GET /v2/health/live HTTP/1.1\r\n{head}\r\n".encode())
            assert idle.recv(4096).startswith(b"HTTP/1.1 200 ")
            assert ask(f"{web.url}/classify", JPEG).status == 200
            assert in_body.recv(4096).startswith(b"HTTP/1.1 408 ")
            for one in (silent, in_header, idle):
                assert one.recv(4096) == b""


def test_uploads_share_a_limit_of_memory(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is over it gets 503 and Retry-After; once others are done there is room again."""
    monkeypatch.setattr(page, "MAX_HELD_BYTES", 2**20)
    with WebServer(0) as web:
        web.start(server.url)
        head = f"POST /classify HTTP/1.1\r\nHost: 127.0.0.1:{web.port}\r\nContent-Length: 1048577\r\n\r\n"
        deadline = time.monotonic() + DEADLINE_S
        refused: list[Answer] = []
        while not refused:  # where an image came before the end of the upload, the upload was refused
            assert time.monotonic() < deadline
            with raw(web.url) as slow:
                slow.sendall(head.encode() + bytes(2**20 - 1000))
                answers = [ask(f"{web.url}/classify", JPEG + bytes(2000)) for _ in range(10)]
            refused = [one for one in answers if one.status == 503]
        assert refused[0].headers["retry-after"] == "1"
        assert "too many uploads" in refused[0].error
        while ask(f"{web.url}/classify", JPEG).status != 200:
            assert time.monotonic() < deadline


def test_more_inferences_than_allowed_are_refused_at_once(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of many is answered or gets 503 and Retry-After; once they are done there is room again."""
    monkeypatch.setattr(page, "MAX_UNDER_WAY", 2)
    with WebServer(0) as web:
        web.start(server.url)

        async def ask_all() -> list[tuple[int, str | None]]:
            async def call(session: aiohttp.ClientSession) -> tuple[int, str | None]:
                async with session.post(f"{web.url}/classify", data=JPEG) as response:
                    await response.read()
                    return response.status, response.headers.get("Retry-After")

            async with aiohttp.ClientSession() as session:
                return list(await asyncio.gather(*(call(session) for _ in range(64))))

        assert set(asyncio.run(ask_all())) == {(200, None), (503, "1")}
        assert ask(f"{web.url}/classify", JPEG).status == 200


def test_more_connections_than_allowed_are_closed(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are there go on."""
    monkeypatch.setattr(page, "MAX_CONNECTIONS", 2)
    with WebServer(0) as web:
        web.start(server.url)
        line = f"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1:{web.port}\r\n\r\n".encode()
        with raw(web.url) as first, raw(web.url) as second:
            for one in (first, second):
                one.sendall(line)
                assert one.recv(4096).startswith(b"HTTP/1.1 200 ")
            with raw(web.url) as third:
                assert third.recv(4096) == b""
            first.sendall(line)
            assert first.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_concurrent_callers_form_batches(url: str, server: EmbeddedServer, test_images: list[Path]) -> None:
    """From many keep-alive connections, one image a request: the model runs at most half as often."""

    def counted() -> tuple[int, int]:
        text = fetch_page(server.metrics_url, timeout_s=DEADLINE_S).decode()
        found = {
            name: sum(
                float(line.rpartition(" ")[2])
                for line in text.splitlines()
                if line.startswith(f'{name}{{model="{FRUIT_RESNET}"')
            )
            for name in ("nv_inference_count", "nv_inference_exec_count")
        }
        return int(found["nv_inference_count"]), int(found["nv_inference_exec_count"])

    async def call(session: aiohttp.ClientSession, body: bytes) -> str:
        async with session.post(f"{url}/classify", data=body) as answer:
            assert answer.status == 200
            return str((await answer.json())["label"])

    async def burst() -> list[str]:
        connector = aiohttp.TCPConnector(limit=64)
        async with aiohttp.ClientSession(connector=connector) as session:
            return list(await asyncio.gather(*(call(session, body) for body in bodies)))

    bodies = [test_images[index % len(test_images)].read_bytes() for index in range(256)]
    images_before, runs_before = counted()
    labels = asyncio.run(burst())
    images_after, runs_after = counted()
    assert images_after - images_before == len(bodies)
    assert runs_after - runs_before <= len(bodies) // 2
    with Client(server.url) as client:
        assert labels == [one.label for one in client.classify(bodies)]


FAILURES = {
    "bad_image": (grpc.StatusCode.INVALID_ARGUMENT, "truncated", 400),
    "unknown_key": (grpc.StatusCode.UNAUTHENTICATED, "unknown API key", 401),
    "not_allowed": (grpc.StatusCode.PERMISSION_DENIED, "not allowed here", 403),
    "full_queue": (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size", 503),
    "waited_too_long": (grpc.StatusCode.UNAVAILABLE, "Request timeout expired", 503),
    "quota": (grpc.StatusCode.RESOURCE_EXHAUSTED, "", 503),
    "no_model": (grpc.StatusCode.NOT_FOUND, "unknown model", 503),
    "crash": (grpc.StatusCode.INTERNAL, "/secret/path.py", 500),
    "late": (grpc.StatusCode.DEADLINE_EXCEEDED, "", 504),
}


@pytest.mark.parametrize("name", FAILURES)
def test_every_failure_of_the_server_has_its_status(name: str) -> None:
    """Overload says when to come back; no text names an inner address or path."""
    code, text, status = FAILURES[name]
    with model_server(lambda received, context: context.abort(code, text)) as model, WebServer(0) as web:
        web.start(model.url)
        answer = ask(f"{web.url}/classify", JPEG)
        assert len(model.received) == 1, "the server is asked once"
    assert answer.status == status
    assert model.url not in answer.error
    assert "secret" not in answer.error
    assert answer.headers.get("retry-after") == ("1" if status == 503 else None)
    assert str(status) in OPENAPI["paths"]["/classify"]["post"]["responses"]


def test_a_server_that_hangs_is_504_and_one_that_is_away_502() -> None:
    """The HTTP server has a deadline of its own."""

    def hang(received: Received, context: grpc.ServicerContext) -> None:
        while context.is_active():
            time.sleep(0.05)

    with WebServer(0, deadline_s=0.5) as web:
        with model_server(hang) as model:
            web.start(model.url)
            assert ask(f"{web.url}/classify", JPEG).status == 504
        assert ask(f"{web.url}/classify", JPEG).status == 502
        assert ask(f"{web.url}/v2/health/ready").status == 503


def test_the_callers_id_and_trace_go_on_with_the_request() -> None:
    """What cannot be sent over gRPC is left out."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with model_server() as model, WebServer(0) as web:
        web.start(model.url)
        assert ask(f"{web.url}/classify", JPEG, {"X-Request-Id": "mine", "Traceparent": trace}).status == 200
        assert ask(f"{web.url}/classify", JPEG, {"X-Request-Id": "caf\u00e9"}).status == 200
    first, second = (one.metadata for one in model.received)
    assert (first["x-request-id"], first["traceparent"]) == ("mine", trace)
    assert second["x-request-id"].isascii()


def test_the_longest_image_is_taken(url: str) -> None:
    """Exactly as many bytes as the contract allows, in a body and in a form; stray bytes are ignored."""
    padded = JPEG + bytes(Preprocessing().max_encoded_bytes - len(JPEG))
    assert ask(f"{url}/classify", padded).status == 200
    assert ask(f"{url}/classify", form(padded), FORM).status == 200


def test_a_stop_tells_open_connections_and_cuts_none_off(server: EmbeddedServer) -> None:
    """The last answer on a connection says that it closes, so no caller sends a request into a closed one."""
    web = WebServer(0)
    web.start(server.url)
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=DEADLINE_S)

    def ask_again() -> http.client.HTTPResponse:
        connection.request("GET", "/v2/health/live")
        answer = connection.getresponse()
        answer.read()
        return answer

    assert ask_again().getheader("Connection") is None
    stopping = threading.Thread(target=web.stop)
    stopping.start()
    while (answer := ask_again()).getheader("Connection") != "close":
        assert answer.status == 200
    stopping.join()
    assert answer.status == 200
