"""The gateway and what stands behind it, anew for each file: tests kill servers and add keys."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.gateway.api_keys import add_api_key
from serving.gateway.certificates import write_dev_certificates
from serving.gateway.envoy import Gateway
from tests.gateway_calls import opened
from tests.model_server import KillableServer


@pytest.fixture(scope="module")
def servers() -> Iterator[list[KillableServer]]:
    """Three: one may be down while Envoy still leaves out another that has just come back."""
    running = [KillableServer() for _ in range(3)]
    yield running
    for server in running:
        server.kill()


@pytest.fixture(scope="module")
def gateway(servers: list[KillableServer], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway before them that lets everybody in."""
    running = opened(servers, None, tmp_path_factory.mktemp("gateway") / "envoy.log")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates, of clients too, and no keys yet."""
    directory = tmp_path_factory.mktemp("access")
    write_dev_certificates(directory, hosts=["localhost", "127.0.0.1"], days=1)
    (directory / "clients.crt").write_bytes((directory / "ca.crt").read_bytes())
    return directory


@pytest.fixture(scope="module")
def guarded(
    servers: list[KillableServer], access: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Gateway, str]]:
    """A gateway before them with TLS both ways and keys, and a key of it."""
    secret = add_api_key(access / "api_keys.json", "first", days=1, requests_per_s=None)
    running = opened(servers, access, tmp_path_factory.mktemp("guarded") / "envoy.log")
    yield running, secret
    running.stop()
