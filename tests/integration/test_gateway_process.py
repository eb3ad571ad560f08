"""The gateway's process: what it shows of itself, and what it does when a server or it itself fails."""

import urllib.error
import urllib.request

import psutil
import pytest

from fruitstand_client import Client
from serving.gateway.config import ADMIN_SOCKET
from serving.gateway.envoy import Gateway
from tests.gateway_calls import counter, inference, status, wait_for
from tests.model_server import KillableServer


def test_a_server_that_hangs_costs_half_of_the_deadline(
    gateway: Gateway, servers: list[KillableServer]
) -> None:
    """Sooner than a health check notices, the gateway asks another; no client repeats anything."""
    process = psutil.Process(servers[0]._process.pid)
    process.suspend()
    try:
        with Client(gateway.url, deadline_s=3.0) as client:
            for _ in range(6):
                (one,) = client.classify_batch([b"x"], top_k=1)
                assert one.label == "1"
    finally:
        process.resume()
    wait_for(lambda: counter(gateway, "cluster.triton.membership_healthy") == 3)


def test_the_admin_endpoint_is_no_port(gateway: Gateway) -> None:
    """What listens on loopback shows metrics and nothing else; the rest is a socket of its owner's."""
    with urllib.request.urlopen(gateway.metrics_url) as page:
        assert b"envoy_cluster_membership_healthy" in page.read()
    base = gateway.metrics_url.removesuffix("/stats/prometheus")
    for path in (
        "/",
        "/config_dump",
        "/certs",
        "/quitquitquit",
        "/stats",
        "/stats/prometheus/../config_dump",
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(base + path)
        assert refused.value.code == 404
        refused.value.close()
    socket_path = gateway._folder() / ADMIN_SOCKET
    assert socket_path.is_socket()
    assert socket_path.parent.stat().st_mode & 0o077 == 0


def test_a_gateway_that_ended_is_started_again(gateway: Gateway) -> None:
    """With the same port and the same callers."""
    psutil.Process(gateway._process.pid).kill()
    wait_for(lambda: not gateway.is_alive())
    gateway.restart()
    wait_for(lambda: status(gateway.url, body=inference())[0] == "OK")
