"""HTTP answers: JSON on one line, security headers, and the status of each error."""

import json
from typing import Any

from aiohttp import web

from fruitstand_client.errors import (
    DeadlineExceeded,
    ImageRejected,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    RequestFailed,
    RequestRejected,
    ServerUnreachable,
    Unauthenticated,
)

JSON_TYPE = "application/json"
RETRY_AFTER_S = 1
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Server": "fruitstand",
}
# The client's messages name the server's gRPC address, which HTTP callers must not see.
STATUSES: list[tuple[type[RequestFailed], int, str | None]] = [
    (ImageRejected, 400, None),
    (RequestRejected, 400, "the server refuses this request"),
    (Unauthenticated, 401, "the server does not know this caller"),
    (PermissionDenied, 403, "not allowed here"),
    (ServerUnreachable, 502, "the model server does not answer"),
    (ModelNotFound, 503, "the model is not loaded; try again later"),  # one the server never had: 404, below
    (Overloaded, 503, "the server is overloaded; send less at once, or try again later"),
    (DeadlineExceeded, 504, "no answer in time"),
]
"""HTTP status and message for each error class of the client; None keeps the server's message."""


class Refused(Exception):
    """An error to send to the HTTP caller."""

    def __init__(self, status: int, reason: str, *, allow: str | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.allow = status, reason, allow

    @classmethod
    def after(cls, failure: RequestFailed) -> "Refused":
        """The HTTP error for a gRPC call that failed."""
        if isinstance(failure, ModelNotFound) and "is not found" in str(failure):
            return cls(404, "the server has no such classifier or version")
        for kind, status, text in STATUSES:
            if isinstance(failure, kind):
                return cls(status, text or str(failure))
        return cls(500, "the server failed on this request")

    def response(self) -> web.Response:
        """The error as one line of JSON."""
        headers = {"Allow": self.allow} if self.allow else {}
        if self.status in (429, 503):
            headers["Retry-After"] = str(RETRY_AFTER_S)
        return json_response({"error": self.reason, "status": self.status}, self.status, headers)


def json_response(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """An HTTP response with one line of JSON."""
    line = json.dumps(document, ensure_ascii=False) + "\n"
    return response(line.encode(), JSON_TYPE, status, headers)


def response(
    content: bytes, content_type: str, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """An HTTP response of any content type, with the security headers."""
    named = {"Content-Type": content_type, **SECURITY_HEADERS, **(headers or {})}
    return web.Response(body=content, status=status, headers=named)
