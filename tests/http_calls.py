"""HTTP requests to the server and to the gateway, and what their errors have in common."""

import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from serving.page import web

OPENAPI = json.loads(Path(web.__file__).with_name("openapi.json").read_text())
MODEL = "/v2/models/fruit_classifier"
DEADLINE_S = 60
NINE_MB = 9 * 2**20


@dataclass
class Answer:
    """What a request was answered with."""

    status: int
    headers: dict[str, str]
    """By their names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        """Of one line."""
        assert self.body.endswith(b"\n")
        assert self.body.count(b"\n") == 1
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The reason, in the form that the OpenAPI document promises."""
        jsonschema.validate(self.json, OPENAPI["components"]["schemas"]["Error"])
        assert self.json["status"] == self.status
        return str(self.json["error"])


def ask(
    url: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    *,
    context: ssl.SSLContext | None = None,
) -> Answer:
    """A GET, or with a body a POST."""
    request = urllib.request.Request(url, body, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S, context=context) as answer:
            return Answer(answer.status, lowered(answer.headers), answer.read())
    except urllib.error.HTTPError as exc:
        with exc:
            return Answer(exc.code, lowered(exc.headers), exc.read())


def lowered(headers: Any) -> dict[str, str]:
    """Headers by their names in lower case, as Envoy writes them."""
    return {name.lower(): value for name, value in headers.items()}
