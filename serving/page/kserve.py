"""KServe V2 over HTTP, translated to gRPC: health, metadata and inference of the classifiers only.

Repository control, statistics and shared memory cannot be reached, because no path calls them.

Source:
    KServe's Open Inference Protocol, version 2, REST; Triton's extensions `binary_tensor_data` and
    `classification`.
"""

import json
import re
from typing import Any

import numpy as np
from aiohttp import web
from tritonclient.grpc import service_pb2

from fruitstand.repository.model_names import CLASSIFIER_NAME
from fruitstand_client.errors import RequestFailed
from fruitstand_client.wire import strings
from serving.page.answer import Refused, json_response, response
from serving.page.upstream import Upstream

HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_JSON_BYTES = 2**20
"""Limit of JSON in one request, because parsing blocks the event loop. JSON makes images 4 times larger."""
MODEL = re.compile(
    rf"/v2/models/(?P<name>{CLASSIFIER_NAME})(?:/versions/(?P<version>\d{{1,9}}))?(?P<call>/ready|/infer)?"
)
"""Matches only ensembles: the names of their steps end otherwise."""
HEALTH = {"/v2/health/live": ("ServerLive", "live"), "/v2/health/ready": ("ServerReady", "ready")}
"""gRPC method and response field for each path."""
BINARY_TYPE = "application/octet-stream"


async def read(path: str, upstream: Upstream) -> web.Response | None:
    """Answer a GET of health or metadata; None if there is no such path.

    Raises:
        RequestFailed: the server did not answer.
    """
    if path == "/v2":
        about = await upstream.ask("ServerMetadata")
        return json_response(
            {"name": about.name, "version": about.version, "extensions": list(about.extensions)}
        )
    if path in HEALTH:
        return await _health(upstream, *HEALTH[path])
    match = MODEL.fullmatch(path)
    if match is None or match["call"] == "/infer":
        return None
    model = {"name": match["name"], "version": match["version"] or ""}
    if match["call"] == "/ready":
        return await _health(upstream, "ModelReady", "ready", **model)
    about = await upstream.ask("ModelMetadata", **model)
    tensors = {
        side: [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in getattr(about, side)]
        for side in ("inputs", "outputs")
    }
    return json_response(
        {"name": about.name, "versions": list(about.versions), "platform": about.platform, **tensors}
    )


def is_health(path: str) -> bool:
    """Whether a path is a health check."""
    match = MODEL.fullmatch(path)
    return path in HEALTH or (match is not None and match["call"] == "/ready")


async def infer(request: web.BaseRequest, body: bytes, upstream: Upstream) -> web.Response:
    """Answer an inference request.

    Raises:
        Refused: the request violates the protocol.
        RequestFailed: the server refused the request or did not answer.
    """
    match = MODEL.fullmatch(request.rel_url.raw_path)
    assert match is not None, "the router matched it"
    try:
        message, binary = parse_request(body, request.headers.get(HEADER_LENGTH))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise Refused(400, f"not a KServe V2 request: {' '.join(str(exc).split())[:200]}") from exc
    message.model_name, message.model_version = match["name"], match["version"] or ""
    answer = await upstream.infer(message, request.headers)
    header, tail = render_response(answer, binary)
    if not tail:
        return json_response(header)
    line = json.dumps(header).encode()
    return response(line + tail, BINARY_TYPE, headers={HEADER_LENGTH: str(len(line))})


def parse_request(body: bytes, header_length: str | None) -> tuple[Any, set[str] | None]:
    """Parse JSON and the binary data after it into a ModelInferRequest that names no model.

    Returns:
        The message, and the names of the outputs requested as binary data; None requests all of them so.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: the request violates the protocol.
        Refused: too much JSON.
    """
    if header_length is not None and not header_length.isdecimal():
        raise ValueError(f"{HEADER_LENGTH}: not a number")
    length = len(body) if header_length is None else int(header_length)
    if length > len(body):
        raise ValueError(f"{HEADER_LENGTH}: the body is shorter")
    if length > MAX_JSON_BYTES:
        raise Refused(
            413, f"too much JSON: {length} bytes, at most {MAX_JSON_BYTES}; send the image as binary data"
        )
    header, raw = json.loads(body[:length]), memoryview(body)[length:]
    if not isinstance(header, dict):
        raise ValueError("no JSON object")
    message = service_pb2.ModelInferRequest(id=header.get("id", ""))
    for tensor in header["inputs"]:
        if tensor["datatype"] != "UINT8":
            raise ValueError(f"datatype of {tensor['name']}: got {tensor['datatype']}, allowed UINT8")
        message.inputs.add(name=tensor["name"], datatype="UINT8").shape.extend(tensor["shape"])
        size = _parameter(tensor, "binary_data_size", int)
        if size is None:
            message.raw_input_contents.append(_bytes_of(tensor["data"]))
        else:
            if not 0 <= size <= len(raw):
                raise ValueError(f"binary_data_size: got {size}, and {len(raw)} bytes are left")
            message.raw_input_contents.append(bytes(raw[:size]))
            raw = raw[size:]
    if raw:
        raise ValueError(f"{len(raw)} bytes belong to no input")
    all_binary = bool(_parameter(header, "binary_data_output", bool))
    if not header.get("outputs"):
        return message, None if all_binary else set()
    binary = set()
    for tensor in header["outputs"]:
        output = message.outputs.add(name=tensor["name"])
        if (count := _parameter(tensor, "classification", int)) is not None:
            output.parameters["classification"].int64_param = count
        own = _parameter(tensor, "binary_data", bool)
        if all_binary if own is None else own:
            binary.add(tensor["name"])
    return message, binary


def render_response(answer: Any, binary: set[str] | None) -> tuple[dict[str, Any], bytes]:
    """Render a response as JSON and the binary data after it.

    Args:
        answer: a ModelInferResponse.
        binary: names of the outputs requested as binary data; None means all of them.
    """
    outputs, tail = [], []
    for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        output = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if binary is None or tensor.name in binary:
            output["parameters"] = {"binary_data_size": len(raw)}
            tail.append(raw)
        else:
            output["data"] = (
                [one.decode() for one in strings(raw)]
                if tensor.datatype == "BYTES"
                else np.frombuffer(raw, "<f4").tolist()
            )
        outputs.append(output)
    named = {"model_name": answer.model_name, "model_version": answer.model_version}
    return named | ({"id": answer.id} if answer.id else {}) | {"outputs": outputs}, b"".join(tail)


async def _health(upstream: Upstream, method: str, field: str, **model: str) -> web.Response:
    try:
        well = getattr(await upstream.ask(method, **model), field)
    except RequestFailed:
        well = False
    if not well:
        raise Refused(503, "not ready")
    return json_response({})


def _parameter(holder: dict[str, Any], name: str, kind: type) -> Any:
    value = holder.get("parameters", {}).get(name)
    if value is not None and type(value) is not kind:
        raise ValueError(f"{name}: got {value!r}, allowed {kind.__name__}")
    return value


def _bytes_of(data: Any) -> bytes:
    """Convert JSON numbers, flat or nested, to UINT8."""
    numbers = np.asarray(data)
    if numbers.size and (numbers.dtype.kind not in "iu" or numbers.min() < 0 or numbers.max() > 255):
        raise ValueError("data: allowed whole numbers from 0 to 255")
    return numbers.astype(np.uint8).tobytes()
