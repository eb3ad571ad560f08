"""`fruitstand gateway`: Envoy before servers that somebody else starts."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from fruitstand.errors import UsageError
from fruitstand.images.synthetic import canary_image
from fruitstand.network.ports import claim_ports
from serving.gateway.serve_gateway import serve_gateway
from tests.gateway_calls import inference, status, wait_for
from tests.model_server import KillableServer


def test_the_verb_puts_envoy_before_a_server_that_comes_later(tmp_path: Path) -> None:
    """It does not wait for the server, sends calls there once it is well, and drains at SIGTERM."""
    (free,) = claim_ports({"server": 0})
    command = [sys.executable, "-m", "fruitstand", "gateway", "--replica", str(free), "--port", "0"]
    command += ["--http-port", "0", "--metrics-port", "0", "--log", str(tmp_path / "envoy.log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            url = ready["grpc"]
            assert status(url, body=inference())[0] == "UNAVAILABLE"
            server = KillableServer(free)
            try:
                wait_for(lambda: status(url, body=inference())[0] == "OK")
                request = urllib.request.Request(ready["http"] + "/classify?top_k=1", canary_image())
                with urllib.request.urlopen(request, timeout=30) as answer:
                    assert json.load(answer)["label"] == str(len(canary_image()))
            finally:
                server.kill()
        finally:
            process.terminate()
        assert process.wait(30) == 0


@pytest.mark.parametrize("replicas", [(), (8011, 8011)], ids=["none", "twice"])
def test_a_gateway_without_distinct_servers_is_refused(replicas: tuple[int, ...]) -> None:
    """Before anything starts."""
    with pytest.raises(UsageError, match="--replica"):
        serve_gateway(
            replicas, listen="127.0.0.1", port=0, http_port=0, metrics_port=0, log_path=None,
            access_directory=None, insecure=False,
        )  # fmt: skip
