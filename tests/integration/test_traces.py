"""Traces: a caller's span, the gateway's and Triton's, as a collector gets them."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from fruitstand.errors import UsageError
from fruitstand.network.ports import claim_ports
from fruitstand_client import Client
from serving.gateway.envoy import Gateway
from serving.tracing import Tracing, read_tracing
from serving.triton.embedded import EmbeddedServer


@dataclass(frozen=True)
class Seen:
    """A span; the numbers are hexadecimal."""

    service: str
    trace_id: str
    span_id: str
    parent_span_id: str


def read_body(request: BaseHTTPRequestHandler) -> bytes:
    """With a length, as Triton sends it, or in chunks, as Envoy does."""
    if "Content-Length" in request.headers:
        return request.rfile.read(int(request.headers["Content-Length"]))
    parts = []
    while length := int(request.rfile.readline(), 16):
        parts.append(request.rfile.read(length))
        request.rfile.readline()
    request.rfile.readline()
    return b"".join(parts)


def read_protobuf(body: bytes) -> Iterator[Seen]:
    """What Envoy sends."""
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        names = {one.key: one.value.string_value for one in resource.resource.attributes}
        for scope in resource.scope_spans:
            for one in scope.spans:
                ids = (one.trace_id, one.span_id, one.parent_span_id)
                yield Seen(names["service.name"], *(number.hex() for number in ids))


def read_json(body: bytes) -> Iterator[Seen]:
    """What Triton sends."""
    for resource in json.loads(body)["resourceSpans"]:
        names = {one["key"]: one["value"].get("stringValue") for one in resource["resource"]["attributes"]}
        for scope in resource["scopeSpans"]:
            for one in scope["spans"]:
                parent = one.get("parentSpanId", "")
                yield Seen(names["service.name"], one["traceId"], one["spanId"], parent)


Spans = list[Seen]


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[str, Spans]]:
    """One that speaks OTLP over HTTP: its URL, and what it got."""
    got: Spans = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = read_body(self)
            is_json = self.headers["Content-Type"].startswith("application/json")
            got.extend(read_json(body) if is_json else read_protobuf(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", got
        server.shutdown()


@pytest.fixture(scope="module")
def traced(
    collector: tuple[str, Spans], repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """HOST:PORT of a gateway before a server; both trace only what a caller traces."""
    folder = tmp_path_factory.mktemp("traced")
    tracing = Tracing(collector[0], share=0.0)
    port, metrics_port = claim_ports({"gateway": 0, "metrics": 0})
    gateway = Gateway(
        listen="127.0.0.1",
        port=port,
        metrics_port=metrics_port,
        access_directory=None,
        log_path=folder / "envoy.log",
        tracing=tracing,
    )
    with EmbeddedServer(repository, log_path=folder / "triton.log", tracing=tracing) as server:
        try:
            gateway.start({server.grpc_port: True})
            yield gateway.url
        finally:
            gateway.stop()


def test_a_callers_trace_goes_through_the_gateway_into_the_server(
    traced: str, collector: tuple[str, Spans], test_images: list[Path]
) -> None:
    """Both have the caller's span as their parent, in the threads of a stream too; without it: nothing.

    Triton 24.10 forgets one trace in eight, and now and then several in a row: the caller goes on until it
    hears of one.
    """
    _, got = collector
    tracer = TracerProvider().get_tracer("test")
    calls, deadline = 0, time.monotonic() + 60
    with Client(traced, batch_size=1) as client:
        client.classify(test_images[:1])
        with TracerProvider(sampler=ALWAYS_OFF).get_tracer("test").start_as_current_span("not traced"):
            client.classify(test_images[:1])
        with tracer.start_as_current_span("caller") as span:
            while not any(one.service == "fruitstand-triton" for one in got):
                assert time.monotonic() < deadline, got
                answers = client.classify(test_images[:3])
                assert [one.error for one in answers] == [None] * 3
                calls += len(answers)
                time.sleep(0.5)
    gateway: Spans = []
    while len(gateway) < calls:
        assert time.monotonic() < deadline, got
        time.sleep(0.1)
        gateway = [one for one in got if one.service == "fruitstand-gateway"]
    context = span.get_span_context()
    assert len(gateway) == calls
    assert {one.parent_span_id for one in gateway} == {f"{context.span_id:016x}"}
    triton = [one for one in got if one.service == "fruitstand-triton"]
    assert f"{context.span_id:016x}" in {one.parent_span_id for one in triton}
    assert {one.trace_id for one in got} == {f"{context.trace_id:032x}"}


def test_without_a_span_the_client_sends_no_header() -> None:
    """A trace that nobody began."""
    from fruitstand_client.wire import trace_headers

    assert trace.get_current_span().get_span_context().is_valid is False
    assert trace_headers() == []


@pytest.mark.parametrize(
    ("url", "share", "words"),
    [
        pytest.param("https://collector/v1/traces", None, "FRUITSTAND_TRACES: ", id="tls"),
        pytest.param("collector:4318", None, "FRUITSTAND_TRACES: ", id="no_url"),
        pytest.param("http://collector:4318/v1/traces", "2", "SHARE", id="share"),
        pytest.param("http://collector:4318/v1/traces", "much", "SHARE", id="no_number"),
    ],
)
def test_what_cannot_be_a_collector_is_refused(url: str, share: str | None, words: str) -> None:
    """In one line, before anything starts."""
    with pytest.raises(UsageError, match=words):
        read_tracing(url, share)
    assert read_tracing(None, None) is None
