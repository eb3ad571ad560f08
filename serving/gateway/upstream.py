"""Envoy's cluster of replicas: endpoints, health checks, load balancing and circuit breakers."""

from pathlib import Path

from serving.gateway.envoy_json import PACKAGE, Json, address, typed, watched
from serving.gateway.limits import BUFFER_BYTES, IN_FLIGHT_PER_REPLICA

KEEPALIVE = {"interval": "1s", "timeout": "2s"}
"""Closes the connection to a hung replica, so that its calls are retried elsewhere. A failed health check
closes idle connections only."""


def watched_servers(folder: Path) -> Json:
    """Servers listed in the watched file of endpoints."""
    return {"type": "EDS", "eds_cluster_config": {"eds_config": watched(folder, "endpoints")}}


def named_servers(cluster: str, host: str, port: int) -> Json:
    """One server for each address of a host name, such as the pods of a headless Service."""
    server = {"lb_endpoints": [{"endpoint": {"address": address(host, port)}}]}
    return {
        "cluster_type": typed(
            "envoy.clusters.dns",
            "extensions.clusters.dns.v3.DnsCluster",
            dns_refresh_rate="5s",
            dns_lookup_family="V4_PREFERRED",
        ),
        "load_assignment": {"cluster_name": cluster, "endpoints": [server]},
    }


def triton_cluster(servers: Json, replicas: int) -> Json:
    """The cluster of all replicas."""
    in_flight = IN_FLIGHT_PER_REPLICA * replicas
    # When a replica dies, all of its share of the calls in flight is retried at once.
    budget_pct = min(100.0, 100.0 / replicas + 20.0)
    return {
        "name": "triton",
        **servers,
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "close_connections_on_host_health_failure": True,
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{PACKAGE}.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {"connection_keepalive": KEEPALIVE}},
            }
        },
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_requests": in_flight,
                    "max_pending_requests": in_flight,
                    "retry_budget": {"budget_percent": {"value": budget_pct}, "min_retry_concurrency": 64},
                    "track_remaining": True,
                }
            ]
        },
        # Count broken connections only: a replica that refuses calls under overload is healthy.
        "outlier_detection": {
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 3,
            "enforcing_consecutive_local_origin_failure": 100,
            "enforcing_local_origin_success_rate": 0,
            "enforcing_consecutive_5xx": 0,
            "enforcing_consecutive_gateway_failure": 0,
            "enforcing_success_rate": 0,
            "interval": "1s",
            "base_ejection_time": "2s",
            "max_ejection_time": "10s",
            "max_ejection_percent": 67,
        },
        # Triton listens once its models are loaded; the supervisor's canary checks that they answer.
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "0.5s",
                "unhealthy_interval": "0.25s",
                "no_traffic_interval": "0.5s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "grpc_health_check": {},
            }
        ],
    }


def endpoints(ports: dict[int, bool]) -> Json:
    """The file of endpoints: the replicas' ports, and whether each takes new calls."""
    return {
        "@type": f"{PACKAGE}.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": "triton",
        "endpoints": [
            {
                "lb_endpoints": [
                    {
                        "endpoint": {"address": address("127.0.0.1", port)},
                        "health_status": "HEALTHY" if taking else "DRAINING",
                    }
                    for port, taking in ports.items()
                ]
            }
        ],
    }
