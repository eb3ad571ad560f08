"""The peers: start command, payload and settings of each, as its own documentation recommends."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SERVERS = HERE / "servers"
REQUIREMENTS = HERE / "requirements"
ENVIRONMENTS = HERE.parents[1] / "build" / "peers"
BOUNDARY = "fruitstand"

Payload = Callable[[bytes], tuple[bytes, str]]
"""Turns an encoded image into a request's body and content type."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """One way to serve an image classifier."""

    name: str
    environment: str
    """Name of `requirements/<environment>.txt`."""
    command: tuple[str, ...]
    """A program of the environment and its arguments; PORT and CORES are replaced."""
    path: str
    """Path of the URL that classifies."""
    payload: Payload
    label: Callable[[Any], str]
    """Reads the label from the parsed answer."""
    settings: dict[str, Any]
    """Settings that its documentation recommends for this case; recorded with the result."""


def raw(image: bytes) -> tuple[bytes, str]:
    """The image is the body."""
    return image, "image/jpeg"


def _form(image: bytes) -> tuple[bytes, str]:
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="image.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    body = head.encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
    return body, f"multipart/form-data; boundary={BOUNDARY}"


def _list(image: bytes) -> tuple[bytes, str]:
    return json.dumps({"images": [base64.b64encode(image).decode()]}).encode(), "application/json"


def _kserve(image: bytes) -> tuple[bytes, str]:
    tensor = {
        "name": "image",
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(image).decode()],
    }
    return json.dumps({"inputs": [tensor]}).encode(), "application/json"


def label_field(answer: Any) -> str:
    """Of an answer that is a JSON object."""
    return str(answer["label"])


_BATCHED = {"max_batch_size": 32, "max_wait_ms": 2, "workers": 1, "threads": "all cores"}

PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            name="fastapi",
            environment="fastapi",
            command=("uvicorn", "fastapi_app:app", "--port", "PORT", "--workers", "CORES", "--no-access-log"),
            path="/classify",
            payload=raw,
            label=label_field,
            settings={"batching": "none", "workers": "one a core", "threads": 1, "loop": "uvloop"},
        ),
        Peer(
            name="litserve",
            environment="litserve",
            command=("python", "litserve_app.py"),
            path="/predict",
            payload=_form,
            label=label_field,
            settings={**_BATCHED, "payload": "file upload"},
        ),
        Peer(
            name="bentoml",
            environment="bentoml",
            command=("bentoml", "serve", "bentoml_app:Fruit", "--port", "PORT"),
            path="/classify",
            payload=_list,
            label=lambda answer: str(answer[0]),
            settings={**_BATCHED, "max_wait_ms": "adaptive", "payload": "base64 in JSON"},
        ),
        Peer(
            name="ray",
            environment="ray",
            command=("python", "ray_app.py"),
            path="/",
            payload=raw,
            label=label_field,
            settings={**_BATCHED, "max_ongoing_requests": 256},
        ),
        Peer(
            name="mlserver",
            environment="mlserver",
            command=("python", "mlserver_app.py"),
            path="/v2/models/fruit/infer",
            payload=_kserve,
            label=lambda answer: str(answer["outputs"][0]["data"][0]),
            settings={**_BATCHED, "parallel_workers": 0, "payload": "base64 in V2 JSON"},
        ),
        Peer(
            name="torchserve",
            environment="torchserve",
            command=("python", "torchserve_app.py"),
            path="/predictions/fruit",
            payload=raw,
            label=label_field,
            settings={**_BATCHED, "job_queue_size": 1024},
        ),
        Peer(
            name="mosec",
            environment="mosec",
            command=("python", "mosec_app.py", "--port", "PORT", "--timeout", "60000"),
            path="/inference",
            payload=raw,
            label=label_field,
            settings=_BATCHED,
        ),
    )
}
