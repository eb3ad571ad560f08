"""The replicas as the gateway sees them: where they are, who is healthy, how much they are given."""

from pathlib import Path

from serving.gateway.envoy_json import PACKAGE, Json, address, typed, watched
from serving.gateway.limits import BUFFER_BYTES, IN_FLIGHT_PER_REPLICA

KEEPALIVE = {"interval": "1s", "timeout": "2s"}
"""Calls in a hung replica end with its connection, and are repeated elsewhere; a failed health check ends
connections without calls only."""


def watched_servers(folder: Path) -> Json:
    """Where the servers are stands in a document that is watched."""
    return {"type": "EDS", "eds_cluster_config": {"eds_config": watched(folder, "endpoints")}}


def named_servers(cluster: str, host: str, port: int) -> Json:
    """Every address that the host's name has is a server, such as the pods behind a headless Service."""
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
    """All replicas, where `servers` says they are."""
    in_flight = IN_FLIGHT_PER_REPLICA * replicas
    # A replica that dies takes its share of what is under way with it: all of that is repeated at once.
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
        # Only connections that fail or break off count: a replica that refuses for overload is not ill.
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
        # Triton listens when its models are loaded; whether they answer the supervisor's canary finds out.
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
    """Where the replicas are: their ports, and whether new calls may go there."""
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
