"""The gateway: a real Envoy in front of real gRPC servers that can be killed, and once in front of Triton."""

import hashlib
import itertools
import json
import socket
import ssl
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil
import pytest

from fruitstand.errors import UsageError
from fruitstand.network.tls import Tls
from fruitstand_client import Client
from serving.gateway.access import check_exposure, read_access
from serving.gateway.api_keys import add_api_key, disable_api_key, read_api_keys
from serving.gateway.certificates import write_dev_certificates
from serving.gateway.envoy import Gateway
from serving.gateway.limits import MAX_REQUEST_BYTES
from serving.gateway.routes import METHODS
from tests.gateway_calls import DEADLINE_S, INFER, counter, inference, status, wait_for
from tests.model_server import KillableServer


def identity(access: Path) -> Tls:
    """Of a client that the gateway knows."""
    return Tls(ca=access / "ca.crt", certificate=access / "client.crt", key=access / "client.key")


def test_a_killed_server_costs_no_call_whatever_the_size(
    gateway: Gateway, servers: list[KillableServer]
) -> None:
    """Each is killed once under load with requests of 6 KB, 300 KB and 4 MB; no client repeats anything."""
    bodies = [b"x" * 6_000, b"y" * 300_000, b"z" * 4_000_000]
    stopped = threading.Event()
    failures: list[str] = []
    answered = itertools.count()

    def call(body: bytes) -> None:
        with Client(gateway.url, deadline_s=DEADLINE_S) as client:
            while not stopped.is_set():
                try:
                    (one,) = client.classify_batch([body], top_k=1)
                    assert one.label == str(len(body))
                    next(answered)
                except Exception as exc:
                    failures.append(repr(exc))

    with ThreadPoolExecutor(6) as pool:
        for body in bodies * 2:
            pool.submit(call, body)
        time.sleep(0.5)
        for number, server in enumerate(servers):
            server.kill()
            time.sleep(0.5)
            servers[number] = KillableServer(server.port)
            wait_for(lambda: counter(gateway, "cluster.triton.membership_healthy") == 3)
        stopped.set()
    assert failures == []
    assert next(answered) > 50
    assert counter(gateway, "cluster.triton.retry_or_shadow_abandoned") == 0
    assert counter(gateway, "cluster.triton.upstream_rq_retry") > 0, "no call met a killed server"


def refused_paths() -> list[str]:
    """Ways to ask for what nobody may ask for: over two hundred."""
    service = "/inference.GRPCInferenceService/"
    methods = [
        "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "ModelConfig", "ModelStatistics",
        "SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister",
        "CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister", "TraceSetting",
        "LogSettings", "ModelStreamInfer",
    ]  # fmt: skip
    others = [
        "/metrics", "/v2", "/v2/models/fruit_classifier/infer", "/v2/repository/index", "/v2/logging",
        "/v2/repository/models/fruit_resnet/load", "/v2/systemsharedmemory/status", "/v2/trace/setting",
        "/invocations", "/ping", "/models", "/predict", "/stats", "/config_dump", "/quitquitquit",
        "/clusters",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.health.v1.Health/Watch",
        "/",
    ]  # fmt: skip
    paths = [service + method for method in methods] + others
    changes = [
        lambda path: path,
        lambda path: "/" + path,
        lambda path: path + "/",
        lambda path: path.upper(),
        lambda path: path.replace("e", "%65"),
        lambda path: path + "?x=/inference.GRPCInferenceService/ModelInfer",
        lambda path: INFER + "/.." + "/.." + path,
    ]
    return sorted({change(path) for path in paths for change in changes})


def test_control_is_refused_however_it_is_asked_for(gateway: Gateway) -> None:
    """More than two hundred paths; inference still works."""
    paths = refused_paths()
    assert len(paths) > 200
    answers = {path: status(gateway.url, path)[0] for path in paths}
    assert {
        path: got for path, got in answers.items() if got not in ("PERMISSION_DENIED", "UNIMPLEMENTED")
    } == {}
    assert status(gateway.url, body=inference()) == ("OK", "")


def test_only_what_is_listed_goes_through() -> None:
    """The list of methods is short enough to be read."""
    assert set(METHODS) == {
        "ModelInfer", "ModelMetadata", "ModelReady", "ServerLive", "ServerReady", "ServerMetadata",
    }  # fmt: skip


def test_a_request_above_the_limit_is_refused_and_the_largest_is_taken(gateway: Gateway) -> None:
    """As RESOURCE_EXHAUSTED, which clients know."""
    assert status(gateway.url, body=inference(MAX_REQUEST_BYTES - 1000))[0] == "OK"
    assert status(gateway.url, body=inference(MAX_REQUEST_BYTES + 1))[0] == "RESOURCE_EXHAUSTED"


def test_a_compressed_request_is_refused(gateway: Gateway) -> None:
    """A megabyte of it may unpack to a gigabyte behind the limit."""
    refused = status(gateway.url, body=inference(100_000), compression=grpc.Compression.Gzip)
    assert refused[0] == "UNIMPLEMENTED"


def test_the_deadline_of_the_caller_is_kept(gateway: Gateway, servers: list[KillableServer]) -> None:
    """All servers hang; the call ends when the caller said, not when the gateway likes."""
    processes = [psutil.Process(server._process.pid) for server in servers]
    for process in processes:
        process.suspend()
    try:
        with Client(gateway.url, deadline_s=0.5) as client:
            started = time.monotonic()
            (one,) = client.classify([b"x"])
            assert one.failure is not None
            assert time.monotonic() - started < 5
    finally:
        for process in processes:
            process.resume()
    wait_for(lambda: counter(gateway, "cluster.triton.membership_healthy") == 3)
    assert status(gateway.url, body=inference())[0] == "OK"


def test_keys_are_asked_for_and_a_change_needs_no_restart(guarded: tuple[Gateway, str], access: Path) -> None:
    """None, a wrong one, an expired one and a disabled one are refused; a new one is let in."""
    gateway, secret = guarded
    tls, body, file = identity(access), inference(), access / "api_keys.json"

    def outcome(key: str | None) -> tuple[str, str]:
        metadata = [("x-api-key", key)] if key else None
        return status(gateway.url, body=body, metadata=metadata, tls=tls)

    assert outcome(secret) == ("OK", "")
    assert outcome(None) == ("UNAUTHENTICATED", "an API key is needed")
    assert outcome("x" * 43) == ("UNAUTHENTICATED", "unknown API key")
    assert (
        status(gateway.url, body=body, metadata=[("x-fruitstand-key", "first")], tls=tls)[0]
        == "UNAUTHENTICATED"
    )
    new = add_api_key(file, "second", days=None, requests_per_s=None)
    gateway.reload_access()
    wait_for(lambda: outcome(new)[0] == "OK")
    disable_api_key(file, "second")
    gateway.reload_access()
    wait_for(lambda: outcome(new) == ("UNAUTHENTICATED", "the API key is disabled"))
    listed = json.loads(file.read_text())
    listed["keys"][1] |= {"disabled": False, "expires": "2020-01-01T00:00:00+00:00"}
    file.write_text(json.dumps(listed))
    gateway.reload_access()
    wait_for(lambda: outcome(new) == ("UNAUTHENTICATED", "the API key has expired"))
    assert outcome(secret) == ("OK", "")


def test_keys_of_every_length_are_recognised(guarded: tuple[Gateway, str], access: Path) -> None:
    """The gateway's own SHA-256 agrees with Python's, on both sides of its block's ends."""
    gateway, _ = guarded
    file = access / "api_keys.json"
    before = file.read_bytes()
    secrets = ["k" * length for length in (1, 55, 56, 63, 64, 119, 120, 256)]
    listed = json.loads(before)
    listed["keys"] += [
        {"name": f"length-{len(one)}", "sha256": hashlib.sha256(one.encode()).hexdigest()} for one in secrets
    ]
    try:
        file.write_text(json.dumps(listed))
        gateway.reload_access()
        for one in secrets:
            metadata, tls = [("x-api-key", one)], identity(access)
            wait_for(
                lambda m=metadata, t=tls: status(gateway.url, body=inference(), metadata=m, tls=t)[0] == "OK"
            )
    finally:
        file.write_bytes(before)
        gateway.reload_access()


def test_a_broken_key_file_changes_nothing(guarded: tuple[Gateway, str], access: Path) -> None:
    """Half a file is no reason to lock everybody out, or to let everybody in."""
    gateway, secret = guarded
    file = access / "api_keys.json"
    before = file.read_bytes()
    try:
        file.write_bytes(before[:40])
        gateway.reload_access()
        assert (
            status(gateway.url, body=inference(), metadata=[("x-api-key", secret)], tls=identity(access))[0]
            == "OK"
        )
        assert status(gateway.url, body=inference(), tls=identity(access))[0] == "UNAUTHENTICATED"
    finally:
        file.write_bytes(before)


def test_a_quota_limits_one_caller_and_nobody_else(guarded: tuple[Gateway, str], access: Path) -> None:
    """What is over it is RESOURCE_EXHAUSTED."""
    gateway, secret = guarded
    slow = add_api_key(access / "api_keys.json", "slow", days=None, requests_per_s=5)
    gateway.reload_access()
    tls, body = identity(access), inference()
    wait_for(lambda: status(gateway.url, body=body, metadata=[("x-api-key", slow)], tls=tls)[0] == "OK")
    with (
        Client(gateway.url, tls=tls, api_key=slow) as limited,
        Client(gateway.url, tls=tls, api_key=secret) as free,
    ):
        outcomes = []
        for _ in range(40):
            try:
                limited.classify_batch([b"x"])
                outcomes.append("OK")
            except Exception as exc:
                outcomes.append(getattr(exc, "status", repr(exc)))
            free.classify_batch([b"x"])
    assert set(outcomes) == {"OK", "RESOURCE_EXHAUSTED"}


def test_clear_text_and_strangers_are_refused(
    guarded: tuple[Gateway, str], access: Path, tmp_path: Path
) -> None:
    """No TLS, no certificate, one of another CA, and TLS 1.1."""
    gateway, secret = guarded
    key = [("x-api-key", secret)]
    write_dev_certificates(tmp_path / "other", hosts=["localhost"], days=1)
    other = tmp_path / "other"
    stranger = Tls(ca=access / "ca.crt", certificate=other / "client.crt", key=other / "client.key")
    assert status(gateway.url, body=inference(), metadata=key)[0] == "UNAVAILABLE"
    for tls in (Tls(ca=access / "ca.crt"), stranger, Tls(ca=other / "ca.crt")):
        assert status(gateway.url, body=inference(), metadata=key, tls=tls)[0] == "UNAVAILABLE"
    context = ssl.create_default_context(cafile=str(access / "ca.crt"))
    context.load_cert_chain(access / "client.crt", access / "client.key")
    assert served_certificate(gateway, context)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(access / "ca.crt")
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():  # Python discourages what the gateway has to refuse
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        served_certificate(gateway, old)


def served_certificate(gateway: Gateway, context: ssl.SSLContext) -> bytes:
    """The certificate that a new connection is shown."""
    with (
        socket.create_connection((gateway.listen, gateway.port), 5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        return connection.getpeercert(True) or b""


def test_a_new_certificate_is_used_without_losing_a_call(
    guarded: tuple[Gateway, str], access: Path, tmp_path: Path
) -> None:
    """New connections see it; the old one goes on. A key that does not fit is not taken."""
    gateway, secret = guarded
    context = ssl.create_default_context(cafile=str(access / "ca.crt"))
    context.load_cert_chain(access / "client.crt", access / "client.key")
    before = served_certificate(gateway, context)
    fresh = tmp_path / "fresh"
    write_dev_certificates(fresh, hosts=["localhost"], days=1)
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    anyone.load_cert_chain(access / "client.crt", access / "client.key")
    old = {name: (access / name).read_bytes() for name in ("server.crt", "server.key")}
    with Client(gateway.url, tls=identity(access), api_key=secret) as client:
        client.classify_batch([b"x"])
        try:
            (access / "server.crt").write_bytes((fresh / "server.crt").read_bytes())
            gateway.reload_access()
            client.classify_batch([b"x"])
            assert served_certificate(gateway, anyone) == before, "half of a change was taken over"
            (access / "server.key").write_bytes((fresh / "server.key").read_bytes())
            gateway.reload_access()
            wait_for(lambda: served_certificate(gateway, anyone) != before, 5)
            client.classify_batch([b"x"])
        finally:
            for name, content in old.items():
                (access / name).write_bytes(content)
            gateway.reload_access()
    wait_for(lambda: served_certificate(gateway, anyone) == before, 5)


def test_the_key_goes_no_further_than_the_gateway(guarded: tuple[Gateway, str], access: Path) -> None:
    """It is in no log; its caller's name is."""
    gateway, secret = guarded
    status(gateway.url, body=inference(), metadata=[("x-api-key", secret)], tls=identity(access))
    assert gateway._log_path is not None
    log_path = gateway._log_path
    wait_for(lambda: '"key_name":"first"' in log_path.read_text())
    log = log_path.read_text()
    assert secret not in log
    assert hashlib.sha256(secret.encode()).hexdigest() not in log
    assert secret not in (access / "api_keys.json").read_text()
    assert read_api_keys(access / "api_keys.json")[0].name == "first"


def test_other_machines_are_served_with_tls_only(access: Path) -> None:
    """Unless somebody insists."""
    with pytest.raises(UsageError, match="--insecure"):
        check_exposure("0.0.0.0", read_access(None), insecure=False)
    check_exposure("0.0.0.0", read_access(None), insecure=True)
    check_exposure("0.0.0.0", read_access(access), insecure=False)
    check_exposure("127.0.0.1", read_access(None), insecure=False)
