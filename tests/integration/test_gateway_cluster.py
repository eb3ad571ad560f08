"""The cluster's gateway, as it is rendered: a real Envoy that finds a server by name."""

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from deploy.gateway import ADMIN_PORT, METRICS_PORT, PORT, SERVERS, render
from fruitstand.network.ports import claim_ports
from fruitstand.network.tls import Tls
from serving.gateway.access import read_access
from serving.gateway.api_keys import add_api_key
from serving.gateway.certificates import write_dev_certificates
from serving.gateway.envoy import envoy_program
from tests.gateway_calls import inference, status, wait_for
from tests.model_server import KillableServer


def page(port: int, path: str) -> tuple[int, str]:
    """What a GET is answered with."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        return exc.code, ""
    except OSError:
        return 0, ""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int, Tls, str]]:
    """The gateway's address, its port of metrics, its CA, and a key; ports and the name are others."""
    folder = tmp_path_factory.mktemp("cluster")
    write_dev_certificates(folder, hosts=["127.0.0.1"], days=1)
    secret = add_api_key(folder / "api_keys.json", "first", days=1, requests_per_s=None)
    for end in ("crt", "key"):
        (folder / f"tls.{end}").write_bytes((folder / f"server.{end}").read_bytes())
    server = KillableServer()
    port, metrics_port, admin_port = claim_ports({"gateway": 0, "metrics": 0, "admin": 0})
    host, server_port = SERVERS
    for name, document in render(read_access(folder), folder=folder, certificate=folder).items():
        text = json.dumps(document).replace(f'"address": "{host}"', '"address": "localhost"')
        for old, new in (
            (PORT, port),
            (METRICS_PORT, metrics_port),
            (ADMIN_PORT, admin_port),
            (server_port, server.port),
        ):
            text = text.replace(f'"port_value": {old}}}', f'"port_value": {new}}}')
        (folder / name).write_text(text)
    command = [envoy_program(), "--config-path", folder / "bootstrap.json", "--disable-hot-restart"]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen([*command, "--log-level", "warning"], stdout=log, stderr=log) as process,
    ):
        try:
            healthy = 'envoy_cluster_membership_healthy{envoy_cluster_name="triton"} 1'
            wait_for(lambda: healthy in page(metrics_port, "/stats/prometheus")[1])
            yield f"127.0.0.1:{port}", metrics_port, Tls(ca=folder / "ca.crt"), secret
        finally:
            process.terminate()
            server.kill()


def test_callers_with_a_key_reach_a_server_found_by_name(cluster: tuple[str, int, Tls, str]) -> None:
    """Over TLS; without a key nobody does, and control is refused to everybody."""
    url, _, tls, secret = cluster
    key = [("x-api-key", secret)]
    assert status(url, body=inference(), metadata=key, tls=tls)[0] == "OK"
    assert status(url, body=inference(), tls=tls)[0] == "UNAUTHENTICATED"
    control = "/inference.GRPCInferenceService/RepositoryModelUnload"
    assert status(url, control, metadata=key, tls=tls)[0] == "PERMISSION_DENIED"


@pytest.mark.parametrize("path", ["/quitquitquit", "/config_dump", "/stats", "/", "/ready/../config_dump"])
def test_of_the_admin_endpoint_others_reach_the_metrics_only(
    path: str, cluster: tuple[str, int, Tls, str]
) -> None:
    """And whether it is ready."""
    assert page(cluster[1], "/ready")[0] == 200
    assert page(cluster[1], path)[0] == 404
