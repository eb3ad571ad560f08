"""Traces: a caller's span, the gateway's and Triton's, as a collector gets them."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider

from fruitstand.errors import UsageError
from fruitstand_client import Client
from serving.embedded import EmbeddedServer, claim_ports
from serving.gateway import Gateway
from serving.tracing import Tracing, read_tracing

Spans = list[tuple[str, Span]]
"""The service that sent each, and the span."""


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[str, Spans]]:
    """One that speaks OTLP over HTTP: its URL, and what it got."""
    got: Spans = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {one.key: one.value.string_value for one in resource.resource.attributes}
                for scope in resource.scope_spans:
                    got.extend((names.get("service.name", ""), span) for span in scope.spans)
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
    port, admin_port = claim_ports({"gateway": 0, "admin": 0})
    gateway = Gateway(
        listen="127.0.0.1",
        port=port,
        admin_port=admin_port,
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


def arrived(got: Spans, trace_id: int, services: set[str]) -> Spans:
    """A trace's spans, once all services have sent one."""
    deadline = time.monotonic() + 30
    while True:
        mine = [(name, span) for name, span in got if int.from_bytes(span.trace_id) == trace_id]
        if {name for name, _ in mine} >= services:
            return mine
        assert time.monotonic() < deadline, f"{mine} of {len(got)}"
        time.sleep(0.1)


def test_a_callers_trace_goes_through_the_gateway_into_the_server(
    traced: str, collector: tuple[str, Spans], test_images: list[Path]
) -> None:
    """Each span has the one before it as its parent, in the threads of a stream too; without one: nothing."""
    _, got = collector
    tracer = TracerProvider().get_tracer("test")
    with Client(traced, batch_size=1) as client:
        client.classify(test_images[:1])
        with tracer.start_as_current_span("caller") as span:
            answers = client.classify(test_images[:3])
    assert [one.error for one in answers] == [None] * 3
    context = span.get_span_context()
    mine = arrived(got, context.trace_id, {"fruitstand-gateway", "fruitstand-triton"})
    gateway = [one for name, one in mine if name == "fruitstand-gateway"]
    assert {int.from_bytes(one.parent_span_id) for one in gateway} == {context.span_id}
    triton = {one.parent_span_id for name, one in mine if name == "fruitstand-triton"}
    assert triton & {one.span_id for one in gateway}
    assert {int.from_bytes(one.trace_id) for _, one in got} == {context.trace_id}


def test_without_a_span_the_client_sends_no_header() -> None:
    """A trace that nobody began."""
    from fruitstand_client.tracing import trace_headers

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
