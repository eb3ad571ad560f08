"""KServe V2 over HTTP in front of the real server, beside Triton's own HTTP endpoint."""

import json
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from fruitstand.contract import FRUIT_CLASSIFIER, FRUIT_RESNET
from fruitstand.images.synthetic import encode, pattern
from serving.page.web import WebServer
from serving.triton.embedded import EmbeddedServer
from tests.http_calls import MODEL, NINE_MB, Answer, ask

JPEG = encode(pattern(100, 100))


@pytest.fixture(scope="module")
def url(server: EmbeddedServer) -> Iterator[str]:
    """The HTTP server in front of the real model server."""
    with WebServer(0) as web:
        web.start(server.url)
        yield web.url


def triton(
    server: EmbeddedServer, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> Answer:
    """What Triton's own HTTP endpoint answers."""
    return ask(f"{server.http_url}{path}", body, headers)


@pytest.mark.parametrize("path", ["/v2", MODEL, f"{MODEL}/versions/1"], ids=["server", "model", "version"])
def test_metadata_is_what_triton_says_of_itself(path: str, url: str, server: EmbeddedServer) -> None:
    """Over its own HTTP."""
    assert ask(f"{url}{path}").json == json.loads(triton(server, path).body)


@pytest.mark.parametrize(
    "path", ["/v2/health/live", "/v2/health/ready", f"{MODEL}/ready", f"{MODEL}/versions/1/ready"]
)
def test_health_is_well(path: str, url: str) -> None:
    """A probe asks by the pod's address, so any host will do."""
    assert ask(f"{url}{path}", None, {"Host": "10.0.0.7:8000"}).status == 200
    assert ask(f"{url}{MODEL}/versions/99/ready").status == 503


OUTPUTS = {
    "default": {},
    "labels": {"outputs": [{"name": "PROBABILITIES", "parameters": {"classification": 2}}]},
    "binary": {"outputs": [{"name": "PROBABILITIES", "parameters": {"binary_data": True}}]},
    "binary_by_default": {"parameters": {"binary_data_output": True}, "id": "mine"},
}


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("binary", [False, True], ids=["json_input", "binary_input"])
def test_an_inference_is_answered_as_triton_answers_it(
    outputs: str, binary: bool, url: str, server: EmbeddedServer
) -> None:
    """JSON and binary data, in and out, are the same for both."""
    tensor: dict[str, Any] = {"name": "IMAGE", "shape": [1, len(JPEG)], "datatype": "UINT8"}
    tensor |= {"parameters": {"binary_data_size": len(JPEG)}} if binary else {"data": [list(JPEG)]}
    line = json.dumps({"inputs": [tensor], **OUTPUTS[outputs]}).encode()
    body, headers = (
        (line + JPEG, {"Inference-Header-Content-Length": str(len(line))}) if binary else (line, {})
    )
    headers["Content-Type"] = "application/octet-stream"
    answers = [
        read_inference(one)
        for one in (
            ask(f"{url}{MODEL}/infer", body, headers),
            triton(server, f"{MODEL}/infer", body, headers),
        )
    ]
    ours, theirs = answers
    assert ours == theirs


def read_inference(answer: Answer) -> dict[str, Any]:
    """An answer with its binary data unpacked and numbers rounded."""
    assert answer.status == 200, answer.body
    length = int(answer.headers.get("inference-header-content-length", len(answer.body)))
    header, tail = json.loads(answer.body[:length]), answer.body[length:]
    for output in header["outputs"]:
        if "parameters" in output:
            size_bytes = output.pop("parameters")["binary_data_size"]
            output["data"] = [number for (number,) in struct.iter_unpack("<f", tail[:size_bytes])]
            tail = tail[size_bytes:]
        output["data"] = [round(one, 4) if isinstance(one, float) else one for one in output["data"]]
    assert not tail
    header["outputs"].sort(key=lambda output: output["name"])
    header.pop("parameters", None)  # Triton adds sequence_id and such
    assert isinstance(header, dict)
    return header


def tensor(**changed: Any) -> bytes:
    """A request with one input that is changed."""
    return json.dumps(
        {"inputs": [{"name": "IMAGE", "shape": [1, 3], "datatype": "UINT8", "data": [1, 2, 3]} | changed]}
    ).encode()


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        pytest.param(b"{", {}, 400, id="no_json"),
        pytest.param(b"[]", {}, 400, id="no_object"),
        pytest.param(b"{}", {}, 400, id="no_input"),
        pytest.param(b'{"inputs": 5}', {}, 400, id="inputs_of_another_type"),
        pytest.param(b"[" * 100_000, {}, 400, id="deep"),
        pytest.param(tensor(data=[1, 2, 256]), {}, 400, id="no_byte"),
        pytest.param(tensor(data=[1, 2, 2.5]), {}, 400, id="no_whole_number"),
        pytest.param(tensor(data="abc"), {}, 400, id="words"),
        pytest.param(tensor(shape=[1, 4]), {}, 400, id="shape_and_data_differ"),
        pytest.param(tensor(shape=[1, -3]), {}, 400, id="negative_shape"),
        pytest.param(tensor(datatype="BYTES"), {}, 400, id="datatype"),
        pytest.param(tensor(name="OTHER"), {}, 400, id="unknown_input"),
        pytest.param(tensor(), {}, 400, id="no_image"),
        pytest.param(
            tensor(data=None, parameters={"shared_memory_region": "r", "shared_memory_byte_size": 3}),
            {}, 400, id="shared_memory",
        ),
        pytest.param(tensor(parameters={"binary_data_size": 9}), {}, 400, id="binary_data_missing"),
        pytest.param(tensor(), {"Inference-Header-Content-Length": "x"}, 400, id="length_no_number"),
        pytest.param(tensor(), {"Inference-Header-Content-Length": "9999"}, 400, id="length_too_long"),
        pytest.param(tensor(data=[0] * 600_000), {}, 413, id="much_json"),
        pytest.param(bytes(NINE_MB), {"Inference-Header-Content-Length": "2"}, 413, id="nine_mb"),
    ],
)  # fmt: skip
def test_a_bad_inference_gets_its_status(body: bytes, headers: dict[str, str], status: int, url: str) -> None:
    """One line, and the server goes on."""
    answer = ask(f"{url}{MODEL}/infer", body, headers)
    assert answer.status == status, answer.body
    assert answer.error


@pytest.mark.parametrize(
    "path",
    [
        f"{MODEL}/config", f"{MODEL}/stats", f"{MODEL}/versions/1/stats", "/v2/models/stats",
        "/v2/repository/index", f"/v2/repository/models/{FRUIT_CLASSIFIER}/unload",
        f"/v2/models/{FRUIT_RESNET}", f"/v2/models/{FRUIT_RESNET}/infer", "/v2/models/image_decode/infer",
        "/v2/systemsharedmemory/status", "/v2/cudasharedmemory/status", "/v2/trace/setting", "/v2/logging",
        f"{MODEL}/../{FRUIT_RESNET}", f"{MODEL}%2Fstats", f"{MODEL}/infer/", f"/{MODEL}/infer", "/metrics",
        "/../serving/web.py", "/%2e%2e/serving/web.py", "/index.html/../../errors.py", "/page.js/",
    ],
)  # fmt: skip
def test_everything_else_is_closed(path: str, url: str) -> None:
    """Control, statistics, shared memory, other models, and files beside the page."""
    for body in (None, b"{}"):
        assert ask(f"{url}{path}", body).status in (404, 405), path
