"""The pod of overlay `cpu`: a real Envoy before a real embedded server, both as they are committed."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fruitstand.network.ports import claim_ports
from serving.gateway.envoy import envoy_program
from serving.triton.embedded import EmbeddedServer
from tests.gateway_calls import status, wait_for
from tests.integration.test_gateway_cluster import page

FRONT = Path(__file__).parents[2] / "deploy/kubernetes/overlays/cpu/front/front.json"


@pytest.fixture(scope="module")
def pod(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """The front's ports by name, once it answers."""
    grpc, http, metrics = claim_ports({"grpc": 0, "http": 0, "metrics": 0})
    folder: Path = tmp_path_factory.mktemp("front")
    text = FRONT.read_text()
    ports = {8001: grpc, 8000: http, 8002: metrics}
    ports |= {8011: server.grpc_port, 8010: server.http_port, 8012: server.metrics_port}
    for committed, port in ports.items():
        text = text.replace(f'"port_value": {committed}\n', f'"port_value": {port}\n')
    (folder / "front.json").write_text(text)
    command = [envoy_program(), "--config-path", folder / "front.json", "--disable-hot-restart"]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen([*command, "--concurrency", "1"], stdout=log, stderr=log) as process,
    ):
        try:
            wait_for(lambda: page(http, "/v2/health/live")[0] == 200)
            yield {"grpc": grpc, "http": http, "metrics": metrics}
        finally:
            process.terminate()


def test_images_are_answered_through_the_front(pod: dict[str, int], test_images: list[Path]) -> None:
    """From the pod's address, as the gateway asks."""
    from fruitstand_client import Client

    with Client(f"127.0.0.1:{pod['grpc']}") as client:
        assert len(client.classify(test_images)) == len(test_images)


@pytest.mark.parametrize(
    "method", ["RepositoryModelUnload", "ModelStatistics", "TraceSetting", "LogSettings"]
)
def test_control_is_refused_at_the_front(method: str, pod: dict[str, int]) -> None:
    """The server behind it listens on loopback, where nobody else is."""
    path = f"/inference.GRPCInferenceService/{method}"
    assert status(f"127.0.0.1:{pod['grpc']}", path)[0] == "PERMISSION_DENIED"


def test_probes_and_prometheus_reach_their_pages_and_no_other(pod: dict[str, int]) -> None:
    """Kubernetes asks for the model, Prometheus for the numbers that the autoscaler reads."""
    assert page(pod["http"], "/v2/models/fruit_classifier/ready")[0] == 200
    assert "nv_inference_pending_request_count" in page(pod["metrics"], "/metrics")[1]
    for path in ("/v2/repository/index", "/v2/models/fruit_classifier/config", "/v2/health/live/../../x"):
        assert page(pod["http"], path)[0] == 403


def test_the_gateways_health_check_is_answered(pod: dict[str, int]) -> None:
    """It asks each replica by gRPC."""
    assert status(f"127.0.0.1:{pod['grpc']}", "/grpc.health.v1.Health/Check", body=b"")[0] == "OK"
