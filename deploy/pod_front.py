"""Envoy inside the pod of overlay `cpu`, in front of the embedded server, which listens on loopback only.

    python -m deploy.pod_front

Writes `overlays/cpu/front/front.json`; a test fails when the file is not what this renders. From the pod's
address it passes on inference and health, two paths for Kubernetes' probes, and Prometheus' page. Model
control, shared memory, statistics, trace and logging settings are refused.
"""

from pathlib import Path

from fruitstand.artefacts import write_json
from fruitstand.contract import FRUIT_CLASSIFIER
from serving.gateway.envoy_json import PACKAGE, Json, address, typed
from serving.gateway.limits import IN_FLIGHT_PER_REPLICA
from serving.gateway.routes import HEALTH, INFERENCE, METHODS

FILE = Path(__file__).parent / "kubernetes" / "overlays" / "cpu" / "front" / "front.json"
LISTEN = "0.0.0.0"
LOOPBACK = "127.0.0.1"
GRPC = (8001, 8011)
"""Port of the pod, and port of the embedded server behind it."""
HTTP = (8000, 8010)
METRICS = (8002, 8012)
PROBES = ("/v2/health/live", f"/v2/models/{FRUIT_CLASSIFIER}/ready")


def render(
    *, grpc: tuple[int, int] = GRPC, http: tuple[int, int] = HTTP, metrics: tuple[int, int] = METRICS
) -> Json:
    """Envoy's configuration.

    Args:
        grpc: port to listen on, and the server's port.
        http: the same for the probes.
        metrics: the same for Prometheus' page.
    """
    ports = {"grpc": grpc, "http": http, "metrics": metrics}
    paths = {
        "grpc": [*(INFERENCE + method for method in METHODS), HEALTH],
        "http": list(PROBES),
        "metrics": ["/metrics"],
    }
    return {
        "node": {"id": "front", "cluster": "fruitstand"},
        "static_resources": {
            "listeners": [_listener(name, ports[name][0], paths[name]) for name in ports],
            "clusters": [_server(name, ports[name][1]) for name in ports],
        },
    }


def _listener(name: str, port: int, paths: list[str]) -> Json:
    """Passes on exact paths, as they come, and refuses everything else."""
    # The caller's deadline and the gateway's limit count; Triton answers when a queue is full.
    passed = [{"match": {"path": path}, "route": {"cluster": name, "timeout": "0s"}} for path in paths]
    refused = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 403, "body": {"inline_string": "not allowed here"}},
    }
    manager = typed(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        route_config={"virtual_hosts": [{"name": name, "domains": ["*"], "routes": [*passed, refused]}]},
        http_filters=[typed("envoy.filters.http.router", "extensions.filters.http.router.v3.Router")],
    )
    return {
        "name": name,
        "address": address(LISTEN, port),
        "enable_reuse_port": False,
        "filter_chains": [{"filters": [manager]}],
    }


def _server(name: str, port: int) -> Json:
    cluster: Json = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(LOOPBACK, port)}}]}],
        },
    }
    if name == "grpc":
        options = "extensions.upstreams.http.v3.HttpProtocolOptions"
        in_flight = 2 * IN_FLIGHT_PER_REPLICA  # the gateway's retries come on top
        cluster["typed_extension_protocol_options"] = {
            f"envoy.{options}": {
                "@type": f"{PACKAGE}.{options}",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
        cluster["circuit_breakers"] = {
            "thresholds": [{"max_requests": in_flight, "max_pending_requests": in_flight}]
        }
    return cluster


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    write_json(FILE, render())
