"""Envoy's configuration for the gateway, as JSON documents that Envoy watches.

The bootstrap is fixed. Routes (with the callers' keys), endpoints and certificates are separate files, which
can change without closing a connection. Monitoring reads the names `gateway` (statistics) and `triton`
(cluster).

gRPC and HTTP share the gateway's listeners, keys, TLS and limits. HTTP requests go to the HTTP server
(`serving/page`), which calls the inner listener over gRPC. So both get the same load balancing, retries and
circuit breakers.

Source:
    Envoy's "Configuring Envoy as an edge proxy" and the FAQ on transient failures.
"""

from pathlib import Path

from fruitstand.network.ports import LOOPBACK
from serving.gateway.access import Access
from serving.gateway.envoy_json import PACKAGE, Json, address, typed, watched
from serving.gateway.limits import (
    BUFFER_BYTES,
    IDLE_S,
    MAX_CALL_S,
    MAX_CONNECTIONS,
    MAX_REQUEST_BYTES,
    WEB_IN_FLIGHT,
)
from serving.gateway.routes import grpc_header, inner_routes
from serving.gateway.upstream import named_servers, triton_cluster, watched_servers

ADMIN_SOCKET = "admin"
"""Name of a Unix socket in the gateway's folder, which only its own user may enter."""
SHOWN = ("/stats/prometheus", "/ready")
JSON_REPLY: Json = {
    "body_format_override": {
        "json_format": {"error": "%LOCAL_REPLY_BODY%", "status": "%RESPONSE_CODE%"},
    }
}
"""Formats Envoy's own HTTP errors as the HTTP server formats its errors."""


def bootstrap(
    folder: Path,
    *,
    metrics_port: int,
    listen: str,
    port: int,
    tls: Access,
    replicas: int,
    web_port: int,
    inner_port: int,
    http_port: int | None = None,
    metrics_listen: str = LOOPBACK,
    admin: Json | None = None,
    dns: tuple[str, int] | None = None,
) -> Json:
    """Build Envoy's bootstrap document.

    Args:
        folder: holds the watched files.
        metrics_port: serves the Prometheus page and `/ready`, and nothing else of the admin endpoint.
        listen: IP address of the gateway.
        port: port of the gateway, for gRPC and HTTP.
        tls: its certificate turns on TLS, its `clients_ca` requires client certificates.
        replicas: the largest number of servers.
        web_port: loopback port of the HTTP server.
        inner_port: loopback port on which the HTTP server calls gRPC, without keys.
        http_port: a second port that answers as `port` does; None opens none.
        metrics_listen: IP address of the Prometheus page.
        admin: address of the admin endpoint; None makes a Unix socket in the folder.
        dns: name and port of all servers; None watches the file of endpoints.
    """
    keyed = {"rds": {"route_config_name": "gateway", "config_source": watched(folder, "routes")}}
    keyless = {"route_config": inner_routes()}
    admin = admin or {"pipe": {"path": str(folder / ADMIN_SOCKET), "mode": 0o600}}
    servers = watched_servers(folder) if dns is None else named_servers("triton", *dns)
    return {
        "node": {"id": "gateway", "cluster": "fruitstand"},
        "admin": {"address": admin},
        "static_resources": {
            "listeners": [
                *(
                    _listener(name, address(listen, at), _connection_manager("gateway", keyed), folder, tls)
                    for name, at in (("gateway", port), ("http", http_port))
                    if at is not None
                ),
                _listener(
                    "inner",
                    address(LOOPBACK, inner_port),
                    _connection_manager("inner", keyless),
                    folder,
                    Access(),
                ),
                _metrics_listener(metrics_listen, metrics_port),
            ],
            "clusters": [
                triton_cluster(servers, replicas),
                _static_cluster("admin", admin),
                {**_static_cluster("web", address(LOOPBACK, web_port)), **_limited(WEB_IN_FLIGHT)},
            ],
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


def _listener(name: str, where: Json, manager: Json, folder: Path, tls: Access) -> Json:
    chain: Json = {"filters": [manager]}
    if tls.certificate is not None:
        context: Json = {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "alpn_protocols": ["h2", "http/1.1"],
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
        "name": name,
        "address": where,
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "enable_reuse_port": False,  # a second gateway on this port has to fail
        "filter_chains": [chain],
    }


def _metrics_listener(listen: str, port: int) -> Json:
    """Expose two admin paths; others can stop Envoy, or show key hashes and certificates."""
    shown = [{"match": {"path": path}, "route": {"cluster": "admin"}} for path in SHOWN]
    manager = typed(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="metrics",
        route_config={"virtual_hosts": [{"name": "metrics", "domains": ["*"], "routes": shown}]},
        http_filters=[typed("envoy.filters.http.router", "extensions.filters.http.router.v3.Router")],
    )
    return {
        "name": "metrics",
        "address": address(listen, port),
        "enable_reuse_port": False,
        "filter_chains": [{"filters": [manager]}],
    }


def _static_cluster(name: str, where: Json) -> Json:
    endpoint = {"endpoint": {"address": where}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _limited(in_flight: int) -> Json:
    """So many HTTP/1.1 requests at once, and as many that wait; the gateway itself refuses more."""
    threshold = {"max_connections": in_flight, "max_pending_requests": in_flight}
    return {"circuit_breakers": {"thresholds": [threshold]}}


def _connection_manager(statistics: str, routes: Json) -> Json:
    return typed(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=statistics,
        codec_type="AUTO",
        server_name="fruitstand",
        use_remote_address=True,
        preserve_external_request_id=True,  # clients report it in their errors
        # Routes match whole paths exactly as sent, so nothing may rewrite them.
        normalize_path=False,
        path_with_escaped_slashes_action="KEEP_UNCHANGED",
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
        **routes,
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
                # Envoy has no gRPC status for 413, too large.
                {
                    "filter": _both(_is_grpc(), _status_is(413)),
                    "headers_to_add": [_header("grpc-status", "8")],
                },
                *(
                    {
                        "filter": _both(_is_grpc(False), _status_is(status)),
                        "headers_to_add": [_header("retry-after", "1")],
                        **JSON_REPLY,
                    }
                    for status in (429, 503)
                ),
                {"filter": _is_grpc(False), **JSON_REPLY},
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
                "request_id": "%REQ(X-REQUEST-ID):64%",
                "key_name": "%DYNAMIC_METADATA(fruitstand:key_name)%",
                "model_version": "%DYNAMIC_METADATA(fruitstand:model_version)%",
                "method": "%REQ(:PATH):128%",
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


def secrets(access: Access) -> dict[str, Json]:
    """The certificates as Envoy secrets, by name."""
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
    return {"name": name, "sds_config": watched(folder, name)}


def _both(*filters: Json) -> Json:
    return {"and_filter": {"filters": list(filters)}}


def _is_grpc(wanted: bool = True) -> Json:
    return {"header_filter": {"header": grpc_header(wanted)}}


def _header(key: str, value: str) -> Json:
    return {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _status_is(code: int) -> Json:
    comparison = {"op": "EQ", "value": {"default_value": code, "runtime_key": f"gateway.status_{code}"}}
    return {"status_code_filter": {"comparison": comparison}}
