"""HTTP through the gateway: the same keys, TLS, limits and closed doors as gRPC."""

import itertools
import json
import ssl
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fruitstand.images.synthetic import canary_image
from serving.gateway.access import read_access
from serving.gateway.api_keys import add_api_key
from serving.gateway.envoy import Gateway
from serving.gateway.routes import HTTP_PATHS, OPEN_PATHS, READY_PATH, routes
from serving.page import web as page
from tests import http_calls
from tests.gateway_calls import counter, wait_for
from tests.http_calls import MODEL, NINE_MB, OPENAPI
from tests.model_server import KillableServer

JPEG = canary_image()
DEADLINE_S = 30
BIRDS = "/v2/models/birds_classifier/infer"
"""Of another repository's classifier."""


@pytest.fixture(scope="module")
def context(access: Path) -> ssl.SSLContext:
    """Of a client that the guarded gateway knows."""
    made = ssl.create_default_context(cafile=str(access / "ca.crt"))
    made.load_cert_chain(access / "client.crt", access / "client.key")
    return made


def ask(
    url: str,
    body: bytes | None = JPEG,
    context: ssl.SSLContext | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, str], str]:
    """Status, headers and body; an error has its promised form."""
    answer = http_calls.ask(url, body, headers, context=context)
    if answer.status != 200:
        assert answer.error
    return answer.status, answer.headers, answer.body.decode()


def test_both_ports_answer_http(gateway: Gateway) -> None:
    """The one for gRPC and the one where HTTP is looked for."""
    for port in (gateway.port, gateway.http_port):
        status, _, text = ask(f"http://127.0.0.1:{port}/classify?top_k=1")
        assert (status, json.loads(text)["label"]) == (200, str(len(JPEG)))


@pytest.mark.parametrize(
    "path",
    ["/classify", f"{MODEL}/infer", MODEL, "/v2", f"{MODEL}/ready", BIRDS],
)
def test_a_key_is_asked_for(path: str, guarded: tuple[Gateway, str], context: ssl.SSLContext) -> None:
    """None and a wrong one are 401; the right one gets further. Over TLS, with a client's certificate."""
    gateway, secret = guarded
    body = JPEG if path.endswith(("classify", "infer")) else None
    outcomes = [
        ask(gateway.http_url + path, body, context, headers)
        for headers in ({}, {"x-api-key": "x" * 43}, {"x-fruitstand-key": "first"}, {"X-API-Key": secret})
    ]
    assert [status for status, _, _ in outcomes[:3]] == [401] * 3
    assert ["API key" in text for _, _, text in outcomes[:3]] == [True] * 3
    assert outcomes[3][0] != 401
    if path == "/classify":
        assert outcomes[3][0] == 200


@pytest.mark.parametrize("path", OPEN_PATHS)
def test_the_page_the_document_and_health_need_no_key(
    path: str, guarded: tuple[Gateway, str], context: ssl.SSLContext
) -> None:
    """A query is no way around the list."""
    assert ask(guarded[0].http_url + path, None, context)[0] in (200, 503)
    assert ask(guarded[0].http_url + f"/classify?x={path}", JPEG, context)[0] == 401


def test_strangers_and_clear_text_get_no_answer(guarded: tuple[Gateway, str], access: Path) -> None:
    """As over gRPC."""
    gateway, secret = guarded
    no_certificate = ssl.create_default_context(cafile=str(access / "ca.crt"))
    key = {"x-api-key": secret}
    for url, context in (
        (gateway.http_url, no_certificate),
        (gateway.http_url.replace("https", "http"), None),
    ):
        with pytest.raises(OSError):  # noqa: PT011  (a reset, an alert or an empty answer)
            ask(f"{url}/classify", JPEG, context, key)


def test_a_quota_is_429_and_says_when_to_come_back(
    guarded: tuple[Gateway, str], access: Path, context: ssl.SSLContext
) -> None:
    """Of one caller; another is answered."""
    gateway, secret = guarded
    slow = add_api_key(access / "api_keys.json", "slow", days=None, requests_per_s=2)
    gateway.reload_access()
    url = f"{gateway.http_url}/classify"
    wait_for(lambda: ask(url, JPEG, context, {"x-api-key": slow})[0] == 200)
    outcomes = [ask(url, JPEG, context, {"x-api-key": slow}) for _ in range(30)]
    assert {status for status, _, _ in outcomes} == {200, 429}
    refused = next(headers for status, headers, _ in outcomes if status == 429)
    assert refused["retry-after"] == "1"
    assert ask(url, JPEG, context, {"x-api-key": secret})[0] == 200


def test_a_large_body_is_413(gateway: Gateway) -> None:
    """One line, and the next is answered."""
    assert ask(f"{gateway.http_url}/classify", bytes(NINE_MB))[0] == 413
    assert ask(f"{gateway.http_url}/classify")[0] == 200


def closed_paths() -> list[str]:
    """What nobody may ask for, and other ways to write it."""
    control = [
        "/v2/repository/index", "/v2/repository/models/fruit_resnet/load", "/v2/logging", "/v2/trace/setting",
        "/v2/repository/models/fruit_classifier/unload", "/v2/systemsharedmemory/status", "/metrics",
        "/v2/cudasharedmemory/region/x/register", f"{MODEL}/stats", f"{MODEL}/config", "/v2/models/stats",
        "/v2/models/fruit_resnet/infer", "/v2/models/image_decode", "/v2/models/birds_model/infer",
        "/v2/models/birds_decode", "/v2/models/_classifier/infer", "/invocations", "/stats", "/config_dump",
        "/quitquitquit",
    ]  # fmt: skip
    changes = [
        lambda path: path,
        lambda path: "/" + path,
        lambda path: path + "/",
        lambda path: path.upper(),
        lambda path: path.replace("e", "%65"),
        lambda path: path + f"?x={MODEL}/infer",
        lambda path: f"{MODEL}/infer/../../../.." + path,
        lambda path: f"{MODEL}%2finfer" + path,
    ]
    return sorted({change(path) for path in control for change in changes})


def test_control_is_refused_however_it_is_asked_for(gateway: Gateway) -> None:
    """Over a hundred paths, as GET and as POST; none of them reaches a server."""
    paths = closed_paths()
    assert len(paths) > 100
    before = counter(gateway, "cluster.triton.upstream_rq_total")
    found = {(path, body): ask(gateway.http_url + path, body)[0] for path in paths for body in (None, b"{}")}
    assert {question: status for question, status in found.items() if status not in (403, 404)} == {}
    assert counter(gateway, "cluster.triton.upstream_rq_total") == before


def test_grpc_does_not_reach_the_http_server(gateway: Gateway) -> None:
    """A gRPC call of an HTTP path is refused at the gateway."""
    headers = {"content-type": "application/grpc"}
    request = urllib.request.Request(f"{gateway.http_url}/classify", JPEG, headers)
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
        assert answer.headers["grpc-status"] == "7"


def test_a_killed_server_costs_no_http_call(gateway: Gateway, servers: list[KillableServer]) -> None:
    """Envoy repeats the call at another one, as for gRPC."""
    stopped = threading.Event()
    failures: list[str] = []
    answered = itertools.count()

    def call() -> None:
        while not stopped.is_set():
            status, _, text = ask(f"{gateway.http_url}/classify")
            failures.extend([] if status == 200 else [text])
            next(answered)

    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(call) for _ in range(4)]
        for number, server in enumerate(servers):
            time.sleep(0.3)
            server.kill()
            time.sleep(0.3)
            servers[number] = KillableServer(server.port)
            wait_for(lambda: counter(gateway, "cluster.triton.membership_healthy") == 3)
        stopped.set()
        for caller in callers:
            caller.result()
    assert failures == []
    assert next(answered) > 20


def test_the_log_names_the_caller_and_one_id_for_both_hops(
    guarded: tuple[Gateway, str], context: ssl.SSLContext
) -> None:
    """The key's name stands at the outer line, the model's version at the inner one."""
    gateway, secret = guarded
    headers = {"x-api-key": secret, "x-request-id": "mine"}
    assert ask(f"{gateway.http_url}/classify", JPEG, context, headers)[0] == 200

    def lines() -> list[dict[str, object]]:
        text = gateway._log_path.read_text()
        rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return [row for row in rows if row["request_id"] == "mine"]

    wait_for(lambda: len(lines()) == 2)
    outer, inner = sorted(lines(), key=lambda row: str(row["method"]))
    assert (outer["method"], inner["method"]) == ("/classify", "/inference.GRPCInferenceService/ModelInfer")
    assert (outer["key_name"], inner["model_version"]) == ("first", "7")
    assert secret not in gateway._log_path.read_text()


def test_readiness_ends_first_when_the_gateway_drains(access: Path) -> None:
    """Before any other route, so that a balancer looks elsewhere while calls still go through."""
    rules = routes(read_access(access), control_header="x", draining=True)["virtual_hosts"][0]["routes"]
    (first,) = (rule for rule in rules[:3] if rule["match"].get("path") == READY_PATH)
    assert first["direct_response"]["status"] == 503


def test_the_routes_are_the_documents_paths() -> None:
    """No path is passed on that the OpenAPI document does not have, and none is missing."""
    plain = {path for path in OPENAPI["paths"] if not path.startswith("/v2/models/")}
    files = {"/", "/page.css", "/page.js"}
    assert plain == set(HTTP_PATHS) - files
    assert files <= set(page.FILES)
