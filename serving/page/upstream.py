"""The model server behind HTTP: one asynchronous gRPC channel shared by all callers.

Concurrent HTTP requests become concurrent gRPC requests, which Triton batches. Refused calls are not retried
here: behind the gateway Envoy retries them, and the HTTP caller gets a Retry-After.
"""

from collections.abc import Mapping
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from fruitstand_client.errors import RequestFailed
from fruitstand_client.explanation import Explanation, explain_request, read_explanation
from fruitstand_client.prediction import Prediction
from fruitstand_client.wire import QUEUE_SHARE, REQUEST_ID_HEADER, Wire

PASSED_HEADERS = (REQUEST_ID_HEADER, "traceparent")
HEALTH_S = 5.0
"""Deadline of health and metadata calls."""


class Upstream:
    """The gRPC calls behind the HTTP paths; use it in the event loop that created it."""

    def __init__(self, url: str, *, deadline_s: float) -> None:
        self._wire = Wire(url, tls=None, api_key=None, keepalive_s=None, asynchronous=True)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._wire.channel)
        self._deadline_s = deadline_s

    async def close(self) -> None:
        """Close the channel."""
        await self._wire.channel.close()

    async def classify(self, image: bytes, top_k: int, caller: Mapping[str, str], model: str) -> Prediction:
        """Classify one image.

        Args:
            image: an encoded image.
            top_k: classes in the answer.
            caller: headers of the HTTP request; its request id and trace are passed on.
            model: name of the classifier.

        Raises:
            RequestFailed: see `fruitstand_client.errors`.
        """
        request = self._wire.request([image], top_k, self._deadline_s, model=model)
        try:
            return self._wire.predictions(await self._infer(request, caller), 1)[0]
        except RequestFailed as exc:
            if not self._wire.asks_less(model, exc):
                raise
        return await self.classify(image, top_k, caller, model)

    async def explain(self, image: bytes, caller: Mapping[str, str], model: str) -> Explanation:
        """Why one image gets its answer; arguments as in `classify`.

        Raises:
            RequestFailed: see `fruitstand_client.errors`; `ModelNotFound` where there is no explainer.
        """
        request = explain_request(self._wire, image, self._deadline_s, model=model)
        return read_explanation(await self._infer(request, caller))

    async def infer(self, request: Any, caller: Mapping[str, str]) -> Any:
        """Send a caller's ModelInferRequest and return the response; `caller` as in `classify`.

        Raises:
            RequestFailed: see `fruitstand_client.errors`.
        """
        request.parameters["timeout"].int64_param = int(self._deadline_s * QUEUE_SHARE * 1e6)
        return await self._infer(request, caller)

    async def _infer(self, request: Any, caller: Mapping[str, str]) -> Any:
        passed = {
            name: value
            for name in PASSED_HEADERS
            if (value := caller.get(name, "")) and value.isascii() and value.isprintable()
        }
        metadata = dict(self._wire.metadata(request)) | passed
        return await self._call(self._wire.infer, request, self._deadline_s, list(metadata.items()))

    async def ask(self, method: str, **fields: str) -> Any:
        """Call a health or metadata method of KServe V2, such as ModelReady, with the fields of its request.

        Raises:
            RequestFailed: see `fruitstand_client.errors`.
        """
        request = getattr(service_pb2, f"{method}Request")(**fields)
        return await self._call(getattr(self._stub, method), request)

    async def _call(
        self, method: Any, request: Any, timeout_s: float = HEALTH_S, metadata: Any = None
    ) -> Any:
        try:
            return await method(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as exc:
            if not isinstance(request, service_pb2.ModelInferRequest):
                request = service_pb2.ModelInferRequest()  # health and metadata requests have no id
            raise self._wire.failure(exc, request) from exc
