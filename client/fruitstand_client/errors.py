"""What can go wrong between a client and a server; every gRPC status is translated here.

ClientError                   base, a FruitstandError
├── RequestRejected           the server refuses this request; sending it again will not help
├── ModelNotFound             the server does not serve the model asked for
├── ServerUnreachable         nothing answers there, or the connection broke
├── Overloaded                the server's queue is full, or the request waited in it too long
├── DeadlineExceeded          no answer in time
└── ServerFailure             the server failed on the request
"""

from tritonclient.utils import InferenceServerException

from fruitstand.errors import ClientError


class RequestRejected(ClientError):
    """The server refuses this request; sending it again will not help."""


class ModelNotFound(ClientError):
    """The server does not serve the model asked for."""


class ServerUnreachable(ClientError):
    """Nothing answers at the address, or the connection broke."""


class Overloaded(ClientError):
    """The server's queue is full, or the request waited in it too long."""


class DeadlineExceeded(ClientError):
    """No answer in time."""


class ServerFailure(ClientError):
    """The server failed on the request."""


BY_STATUS: dict[str, type[ClientError]] = {
    "CANCELLED": DeadlineExceeded,
    "UNKNOWN": ServerFailure,
    "INVALID_ARGUMENT": RequestRejected,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "NOT_FOUND": ModelNotFound,
    "ALREADY_EXISTS": RequestRejected,
    "PERMISSION_DENIED": RequestRejected,
    "RESOURCE_EXHAUSTED": Overloaded,
    "FAILED_PRECONDITION": RequestRejected,
    "ABORTED": ServerFailure,
    "OUT_OF_RANGE": RequestRejected,
    "UNIMPLEMENTED": RequestRejected,
    "INTERNAL": ServerFailure,
    "UNAVAILABLE": ServerUnreachable,
    "DATA_LOSS": ServerFailure,
    "UNAUTHENTICATED": RequestRejected,
}
# Triton says UNAVAILABLE for its queue's refusals, gRPC says it for a connection that is not there, and
# Triton says it for a model it never heard of; only the text tells them apart.
_QUEUE_TEXTS = ("Exceeds maximum queue size", "Request timeout expired")
_MODEL_TEXTS = ("unknown model", "is not ready", "is not found")


def translate(error: InferenceServerException, url: str) -> ClientError:
    """The error of ours for one of tritonclient's."""
    text = error.message() or ""
    status = (error.status() or "").removeprefix("StatusCode.")
    kind = BY_STATUS.get(status, ServerFailure)
    if status == "UNAVAILABLE" and any(part in text for part in _QUEUE_TEXTS):
        kind = Overloaded
    elif any(part in text for part in _MODEL_TEXTS):
        kind = ModelNotFound
    if kind is ServerUnreachable:
        text = f"{url}: no server answers; is it started, and is this its gRPC address? ({text})"
    elif kind is DeadlineExceeded:
        text = f"{url}: no answer in time; allow more time or send less at once"
    elif kind is ModelNotFound:
        text = f"{url}: {text}; is this a fruitstand server, with a published version?"
    return kind(text)
