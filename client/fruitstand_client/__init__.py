"""Classify images with a served model over gRPC, in batches.

    from fruitstand_client import Client

    with Client("127.0.0.1:8001") as client:
        for prediction in client.classify(["apple.jpg", "pear.jpg"]):
            print(prediction.label, prediction.probability)

Needs tritonclient[grpc] and numpy, nothing of the training side.
"""

from fruitstand.network.tls import Tls
from fruitstand_client.client import AsyncClient, Client
from fruitstand_client.errors import (
    DeadlineExceeded,
    ImageRejected,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    RequestCancelled,
    RequestFailed,
    RequestRejected,
    ServerFailure,
    ServerUnreachable,
    ServerUntrusted,
    Unauthenticated,
)
from fruitstand_client.prediction import Prediction, RankedLabel

__all__ = [
    "AsyncClient",
    "Client",
    "DeadlineExceeded",
    "ImageRejected",
    "ModelNotFound",
    "Overloaded",
    "PermissionDenied",
    "Prediction",
    "RankedLabel",
    "RequestCancelled",
    "RequestFailed",
    "RequestRejected",
    "ServerFailure",
    "ServerUnreachable",
    "ServerUntrusted",
    "Tls",
    "Unauthenticated",
]
