"""Every way to ask for what nobody outside may ask for, over gRPC and over HTTP."""

import http.client
from collections.abc import Callable, Iterator

import grpc

from fruitstand.network.connections import open_channel

SERVICE = "/inference.GRPCInferenceService/"
METHODS = (
    "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "ModelConfig", "ModelStatistics",
    "SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister", "TraceSetting",
    "LogSettings",
)  # fmt: skip
OTHER_METHODS = (
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/grpc.health.v1.Health/Watch",
)
HTTP_CONTROL = (
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/fruit_resnet/load"),
    ("POST", "/v2/repository/models/fruit_resnet/unload"),
    ("GET", "/v2/models/fruit_resnet/config"),
    ("GET", "/v2/models/fruit_resnet/stats"),
    ("GET", "/v2/models/stats"),
    ("GET", "/v2/systemsharedmemory/status"),
    ("POST", "/v2/systemsharedmemory/region/x/register"),
    ("POST", "/v2/systemsharedmemory/unregister"),
    ("GET", "/v2/cudasharedmemory/status"),
    ("POST", "/v2/cudasharedmemory/region/x/register"),
    ("POST", "/v2/cudasharedmemory/unregister"),
    ("GET", "/v2/trace/setting"),
    ("POST", "/v2/models/fruit_resnet/trace/setting"),
    ("GET", "/v2/logging"),
    ("POST", "/v2/logging"),
    ("POST", "/invocations"),
    ("GET", "/models"),
    ("POST", "/models/fruit_resnet/invoke"),
    ("POST", "/predict"),
)
HTTP_GATEWAY = (
    ("GET", "/metrics"),
    ("GET", "/stats"),
    ("GET", "/stats/prometheus"),
    ("GET", "/config_dump"),
    ("GET", "/clusters"),
    ("GET", "/certs"),
    ("POST", "/quitquitquit"),
    ("POST", "/v2/models/fruit_classifier/infer"),
    ("GET", "/"),
)
"""What only the gateway has to refuse as well."""
SPELLINGS: tuple[Callable[[str], str], ...] = (
    lambda path: path,
    lambda path: "/" + path,
    lambda path: path.replace("/", "//"),
    lambda path: path + "/",
    lambda path: path.upper(),
    lambda path: path.lower(),
    lambda path: path.replace("e", "%65"),
    lambda path: path.replace("/", "%2f").replace("%2f", "/", 1),
    lambda path: path + "?x=" + SERVICE + "ModelInfer",
    lambda path: SERVICE + "ModelInfer/../.." + path,
    lambda path: "/x/.." + path,
    lambda path: "/." + path,
    lambda path: path + "/..",
    lambda path: path + "%00",
    lambda path: path + ";",
    lambda path: path + ".",
)


def grpc_paths() -> list[str]:
    """Methods in every spelling."""
    methods = [*(SERVICE + name for name in METHODS), *OTHER_METHODS]
    return sorted({spell(method) for method in methods for spell in SPELLINGS})


def http_calls(*, of_gateway: bool) -> list[tuple[str, str]]:
    """Verb and path, in every spelling."""
    calls = (*HTTP_CONTROL, *(HTTP_GATEWAY if of_gateway else ()))
    return sorted({(verb, spell(path)) for verb, path in calls for spell in SPELLINGS})


def grpc_outcomes(url: str, paths: list[str]) -> Iterator[tuple[str, str, str]]:
    """Each path with the status of a call, and its words."""
    with open_channel(url) as channel:
        for path in paths:
            try:
                channel.unary_unary(path)(b"", timeout=10)
                yield path, "OK", ""
            except grpc.RpcError as exc:
                yield path, exc.code().name, exc.details() or ""


def http_outcomes(host_port: str, calls: list[tuple[str, str]]) -> Iterator[tuple[str, int]]:
    """Each call with the status of its answer."""
    for verb, path in calls:
        connection = http.client.HTTPConnection(host_port, timeout=10)
        try:
            connection.putrequest(verb, path, skip_accept_encoding=True)
            connection.putheader("Content-Length", "2")
            connection.endheaders(b"{}")
            yield f"{verb} {path}", connection.getresponse().status
        except (http.client.HTTPException, ValueError):
            yield f"{verb} {path}", 400
        finally:
            connection.close()
