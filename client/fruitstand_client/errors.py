"""The client's error classes, and the translation of every gRPC status into one of them.

ClientError                       base, a FruitstandError
└── RequestFailed                 carries the gRPC status, the request's id and the server's push-back
    ├── ImageRejected             one image is refused, here or by the server; also a DataError
    ├── RequestRejected           the server refuses this request; sending it again will not help
    ├── Unauthenticated           the server does not know the caller: API key or client certificate
    ├── PermissionDenied          the caller is not allowed to do this
    ├── ModelNotFound             the server does not serve the requested model
    ├── ServerUnreachable         no server answers, or the connection broke
    ├── ServerUntrusted           TLS failed: a certificate is expired, unknown, or for another name
    ├── Overloaded                the server's queue is full, or the request waited in it too long
    ├── DeadlineExceeded          the deadline passed without an answer
    ├── RequestCancelled          the request was cancelled before it was answered
    └── ServerFailure             the server failed on the request
"""

import re

import fruitstand.errors
from fruitstand.errors import ClientError


class RequestFailed(ClientError):
    """A request failed."""

    def __init__(
        self,
        message: str,
        *,
        status: str | None = None,
        pushback_s: float | None = None,
        request_id: str = "",
    ) -> None:
        """Keep the details of the server's error.

        Args:
            message: one line, fit to be shown.
            status: name of the gRPC status; None where the failure is the client's own.
            pushback_s: how long the server asks to wait before the next attempt, seconds; negative forbids
                one.
            request_id: as sent; the server's log names it.
        """
        super().__init__(message)
        self.status = status
        self.pushback_s = pushback_s
        self.request_id = request_id


class ImageRejected(RequestFailed, fruitstand.errors.ImageRejected):
    """The client or the server refused an image."""


class DecodeFailed(ImageRejected):
    """Decoding failed for a batch that the server formed; another caller's image may be the cause."""


class RequestRejected(RequestFailed):
    """The server refuses this request, and would refuse it again."""


class Unauthenticated(RequestFailed):
    """The server requires valid credentials."""


class PermissionDenied(RequestFailed):
    """The caller is not allowed to do this."""


class ModelNotFound(RequestFailed):
    """The server does not serve the requested model."""


class ServerUnreachable(RequestFailed):
    """No server answers at the address, or the connection broke."""


class ServerUntrusted(RequestFailed):
    """The TLS handshake failed."""


class Overloaded(RequestFailed):
    """The server's queue is full, or the request waited in it too long."""


class DeadlineExceeded(RequestFailed):
    """The deadline passed without an answer."""


class RequestCancelled(RequestFailed):
    """The request was cancelled before it was answered."""


class ServerFailure(RequestFailed):
    """The server failed on the request."""


BY_STATUS: dict[str, type[RequestFailed]] = {
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
# A status alone is ambiguous, so these texts decide. UNAVAILABLE: Triton's queue is full, a model is unknown,
# a gateway's replicas are full, late or gone, or gRPC has no connection or a failed handshake.
# RESOURCE_EXHAUSTED also means a message that is too long. NVIDIA's native DALI backend answers UNKNOWN to
# every request of a batch in which one image does not decode; a CUDA error there is the server's own failure.
_BY_TEXT: list[tuple[set[str], re.Pattern[str], type[RequestFailed]]] = [
    (
        {"UNAVAILABLE"},
        re.compile(
            "Exceeds maximum queue size|Request timeout expired|rate.?limit"
            "|no healthy upstream|upstream connect error.*overflow",
            re.IGNORECASE,
        ),
        Overloaded,
    ),
    ({"UNAVAILABLE"}, re.compile("upstream request timeout"), DeadlineExceeded),
    (
        {"UNAVAILABLE"},
        re.compile("handshake failed|CERTIFICATE|Verification", re.IGNORECASE),
        ServerUntrusted,
    ),
    (set(BY_STATUS), re.compile("unknown model|is not ready|is not found"), ModelNotFound),
    ({"RESOURCE_EXHAUSTED"}, re.compile("larger than max|Payload Too Large"), ImageRejected),
    (
        {"UNKNOWN", "INTERNAL"},
        re.compile("CUDA (runtime|driver) API error|CUDA allocation|CUDA_ERROR|cudaError"),
        ServerFailure,
    ),
    (
        {"UNKNOWN", "INTERNAL"},
        re.compile("Critical error in pipeline|nvImageCodec|DALI error: ", re.IGNORECASE),
        DecodeFailed,
    ),
]
_ENSEMBLES = re.compile(r"^(in ensemble '[^']*', )+")
"""Prefix in which Triton names each ensemble of a failed step."""
_TLS_REASONS = {
    "certificate has expired": "its certificate has expired; renew it on the server",
    "unable to get local issuer": "its certificate's issuer is unknown here; name the CA's file",
    "self-signed": "its certificate is self-signed; name the CA's file",
    "self signed": "its certificate is self-signed; name the CA's file",
    "IP address mismatch": "its certificate is for another name; use the name that stands in it",
    "Hostname Verification": "its certificate is for another name; use the name that stands in it",
    "not in peer certificate": "its certificate is for another name; use the name that stands in it",
    # The whole message of grpcio before 1.7x; checked after the longer messages of newer releases.
    "CERTIFICATE_VERIFY_FAILED": "its certificate is expired, or its issuer is unknown; name the CA's file",
    "WRONG_VERSION_NUMBER": "it does not speak TLS; leave the TLS settings out, or use another port",
}

_ADVICE: dict[type[RequestFailed], tuple[str, str]] = {
    DeadlineExceeded: ("no answer in time", "; allow more time or send less at once"),
    ModelNotFound: (
        "no such model",
        "; does this server have a classifier of that name?",
    ),
    Unauthenticated: ("not authenticated", "; give a valid API key or client certificate"),
    PermissionDenied: ("permission denied", "; this API key or certificate may not do that"),
    Overloaded: ("overloaded", "; send less at once, or try later"),
}
"""Default message if the server sends none, and advice."""


def translate(
    status: str, text: str, url: str, *, pushback_s: float | None = None, request_id: str = ""
) -> RequestFailed:
    """Translate a gRPC error.

    `status` is the name of the gRPC status, `text` what came with it; `url` goes into the message.
    """
    kind = BY_STATUS.get(status, ServerFailure)
    for statuses, pattern, named in _BY_TEXT:
        if status in statuses and pattern.search(text):
            kind = named
            break
    message = _message(kind, status, _ENSEMBLES.sub("", " ".join(text.split())), url)
    return kind(message, status=status, pushback_s=pushback_s, request_id=request_id)


def _message(kind: type[RequestFailed], status: str, text: str, url: str) -> str:
    """Compose a one-line message with advice."""
    if kind is ImageRejected:
        if status == "RESOURCE_EXHAUSTED":
            return f"longer than the server's limit for one message ({text})"
        return text
    if kind is DecodeFailed:  # the text contains the server's paths
        return "damaged or truncated: the server cannot decode it"
    if kind is ServerUnreachable and "last error: " in text and "Socket closed" in text:
        return f"{url}: the server closes the connection at once; it may require TLS or a client certificate"
    if kind is ServerUnreachable:
        return f"{url}: no server answers; check that it runs and that this is its gRPC address ({text})"
    if kind is ServerUntrusted:
        reason = next((words for mark, words in _TLS_REASONS.items() if mark.lower() in text.lower()), text)
        return f"{url}: no TLS connection to the server: {reason}"
    if kind is DeadlineExceeded:
        text = ""  # gRPC's message is less clear
    default, advice = _ADVICE.get(kind, (status, ""))
    return f"{url}: {text or default}{advice}"
