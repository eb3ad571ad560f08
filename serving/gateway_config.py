"""Envoy's configuration for the gateway, as JSON documents that Envoy watches.

The bootstrap and the listener never change; routes (with callers' keys), endpoints and certificates are files
of their own, so that they change without closing a connection. The names `gateway` (statistics) and `triton`
(cluster) are those that monitoring reads.

Source:
    Envoy's "Configuring Envoy as an edge proxy" and the FAQ on transient failures.
"""

from pathlib import Path
from typing import Any

from serving.access import Access

MAX_REQUEST_BYTES = 8 << 20
BUFFER_BYTES = MAX_REQUEST_BYTES + (1 << 20)
"""Larger than any request that is let in: each can be repeated when its replica dies."""
IN_FLIGHT_PER_REPLICA = 128
MAX_CONNECTIONS = 4096
MAX_CALL_S = 60
"""For callers that name no deadline."""
IDLE_S = 60
PACKAGE = "type.googleapis.com/envoy"

Json = dict[str, Any]


def bootstrap(
    folder: Path,
    *,
    admin_port: int,
    listen: str,
    port: int,
    tls: Access,
    replicas: int,
    dns: tuple[str, int] | None = None,
) -> Json:
    """The document Envoy is started with.

    Args:
        folder: of the watched files.
        admin_port: of the admin endpoint, always on loopback.
        listen: address to listen on.
        port: of the gateway.
        tls: whether to speak TLS and to ask for clients' certificates.
        replicas: how many servers there are, at most.
        dns: name and port that all servers are found under; None watches the file of endpoints.
    """
    servers = _watched_servers(folder) if dns is None else named_servers("triton", *dns)
    return {
        "node": {"id": "gateway", "cluster": "fruitstand"},
        "admin": {"address": _address("127.0.0.1", admin_port)},
        "static_resources": {
            "listeners": [_listener(folder, listen=listen, port=port, tls=tls)],
            "clusters": [_cluster(replicas) | servers],
        },
        "overload_manager": {
            "resource_monitors": [
                typed(
                    "envoy.resource_monitors.global_downstream_max_connections",
                    "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=MAX_CONNECTIONS,
                ),
                typed(
                    "envoy.resource_monitors.fixed_heap",
                    "extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                    max_heap_size_bytes=2 << 30,
                ),
            ],
            "actions": [
                {
                    "name": f"envoy.overload_actions.{action}",
                    "triggers": [{"name": "envoy.resource_monitors.fixed_heap", "threshold": {"value": at}}],
                }
                for action, at in (("shrink_heap", 0.9), ("stop_accepting_requests", 0.95))
            ],
        },
    }


def _listener(folder: Path, *, listen: str, port: int, tls: Access) -> Json:
    chain: Json = {"filters": [_connection_manager(folder)]}
    if tls.certificate is not None:
        context: Json = {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "alpn_protocols": ["h2"],
            "tls_certificate_sds_secret_configs": [_secret(folder, "server")],
        }
        if tls.clients_ca is not None:
            context["validation_context_sds_secret_config"] = _secret(folder, "clients")
        chain["transport_socket"] = typed(
            "envoy.transport_sockets.tls",
            "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            common_tls_context=context,
            require_client_certificate=tls.clients_ca is not None,
        )
        chain["transport_socket_connect_timeout"] = "5s"
    return {
        "name": "gateway",
        "address": _address(listen, port),
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "enable_reuse_port": False,  # a second gateway on the port is an error, not a partner
        "filter_chains": [chain],
    }


def _connection_manager(folder: Path) -> Json:
    return typed(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="gateway",
        codec_type="AUTO",
        server_name="fruitstand",
        use_remote_address=True,
        normalize_path=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        request_headers_timeout="5s",
        request_timeout=f"{IDLE_S}s",
        stream_idle_timeout=f"{MAX_CALL_S + 5}s",
        drain_timeout="5s",
        common_http_protocol_options={
            "idle_timeout": f"{IDLE_S}s",
            "headers_with_underscores_action": "REJECT_REQUEST",
        },
        http2_protocol_options={
            "max_concurrent_streams": 512,
            "initial_stream_window_size": 1 << 20,
            "initial_connection_window_size": 4 << 20,
        },
        rds={"route_config_name": "gateway", "config_source": _watched(folder, "routes")},
        http_filters=[
            typed(
                "envoy.filters.http.grpc_stats",
                "extensions.filters.http.grpc_stats.v3.FilterConfig",
                emit_filter_state=True,
                enable_upstream_stats=True,
                individual_method_stats_allowlist={
                    "services": [{"name": "inference.GRPCInferenceService", "method_names": ["ModelInfer"]}]
                },
            ),
            typed("envoy.filters.http.lua", "extensions.filters.http.lua.v3.Lua"),
            typed(
                "envoy.filters.http.local_ratelimit",
                "extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
                stat_prefix="gateway",
            ),
            typed(
                "envoy.filters.http.buffer",
                "extensions.filters.http.buffer.v3.Buffer",
                max_request_bytes=MAX_REQUEST_BYTES,
            ),
            typed("envoy.filters.http.router", "extensions.filters.http.router.v3.Router"),
        ],
        local_reply_config={
            "mappers": [
                {  # too large: Envoy knows no gRPC status for 413
                    "filter": _status_is(413),
                    "headers_to_add": [
                        {
                            "header": {"key": "grpc-status", "value": "8"},
                            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                        }
                    ],
                }
            ]
        },
        access_log=[_access_log()],
    )


def _access_log() -> Json:
    return typed(
        "envoy.access_loggers.stderr",
        "extensions.access_loggers.stream.v3.StderrAccessLog",
        log_format={
            "json_format": {
                "time": "%START_TIME%",
                "request_id": "%REQ(X-REQUEST-ID)%",
                "key_name": "%DYNAMIC_METADATA(fruitstand:key_name)%",
                "method": "%REQ(:PATH)%",
                "grpc_status": "%GRPC_STATUS%",
                "http_status": "%RESPONSE_CODE%",
                "reason": "%RESPONSE_CODE_DETAILS%",
                "flags": "%RESPONSE_FLAGS%",
                "duration_ms": "%DURATION%",
                "replica_ms": "%RESPONSE_DURATION%",
                "replica": "%UPSTREAM_HOST%",
                "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
                "request_bytes": "%BYTES_RECEIVED%",
                "response_bytes": "%BYTES_SENT%",
            }
        },
    )


def _watched_servers(folder: Path) -> Json:
    return {"type": "EDS", "eds_cluster_config": {"eds_config": _watched(folder, "endpoints")}}


def named_servers(cluster: str, host: str, port: int) -> Json:
    """Every address that the host's name has is a server, such as the pods behind a headless Service."""
    server = {"lb_endpoints": [{"endpoint": {"address": _address(host, port)}}]}
    return {
        "cluster_type": typed(
            "envoy.clusters.dns",
            "extensions.clusters.dns.v3.DnsCluster",
            dns_refresh_rate="5s",
            dns_lookup_family="V4_PREFERRED",
        ),
        "load_assignment": {"cluster_name": cluster, "endpoints": [server]},
    }


def _cluster(replicas: int) -> Json:
    in_flight = IN_FLIGHT_PER_REPLICA * replicas
    return {
        "name": "triton",
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        # Calls in a hung replica end with its connection and are repeated elsewhere.
        "close_connections_on_host_health_failure": True,
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{PACKAGE}.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_requests": in_flight,
                    "max_pending_requests": in_flight,
                    "retry_budget": {"budget_percent": {"value": 50}, "min_retry_concurrency": 64},
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
        # Triton says SERVING when all its models are ready (--strict-readiness).
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "1s",
                "no_traffic_interval": "1s",
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
                        "endpoint": {"address": _address("127.0.0.1", port)},
                        "health_status": "HEALTHY" if taking else "DRAINING",
                    }
                    for port, taking in ports.items()
                ]
            }
        ],
    }


def secrets(access: Access) -> dict[str, Json]:
    """The certificates, by the name of their secret."""
    found: dict[str, Json] = {}
    if access.certificate is not None:
        found["server"] = {
            "tls_certificate": {
                "certificate_chain": {"inline_string": access.certificate},
                "private_key": {"inline_string": access.private_key},
            }
        }
    if access.clients_ca is not None:
        found["clients"] = {"validation_context": {"trusted_ca": {"inline_string": access.clients_ca}}}
    kind = f"{PACKAGE}.extensions.transport_sockets.tls.v3.Secret"
    return {name: {"@type": kind, "name": name, **secret} for name, secret in found.items()}


def _secret(folder: Path, name: str) -> Json:
    return {"name": name, "sds_config": _watched(folder, name)}


def _watched(folder: Path, name: str) -> Json:
    return {
        "resource_api_version": "V3",
        "path_config_source": {
            "path": str(folder / f"{name}.json"),
            "watched_directory": {"path": str(folder)},
        },
    }


def _status_is(code: int) -> Json:
    comparison = {"op": "EQ", "value": {"default_value": code, "runtime_key": f"gateway.status_{code}"}}
    return {"status_code_filter": {"comparison": comparison}}


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def typed(name: str, kind: str, **fields: Any) -> Json:
    """An extension's configuration, as Envoy wants it named."""
    return {"name": name, "typed_config": {"@type": f"{PACKAGE}.{kind}", **fields}}
