"""Envoy's route document: allowed methods and paths, callers' keys, quotas and retries.

It changes while the gateway runs, as keys are added and disabled.
"""

from pathlib import Path

from fruitstand.contract import API_KEY_HEADER
from fruitstand.repository.model_names import CLASSIFIER_NAME
from serving.gateway.access import Access
from serving.gateway.api_keys import ApiKey
from serving.gateway.envoy_json import PACKAGE, Json, typed
from serving.gateway.limits import MAX_CALL_S, MIN_TRY_MS, TRY_SHARE

KEY_NAME_HEADER = "x-fruitstand-key"
INFERENCE = "/inference.GRPCInferenceService/"
HEALTH = "/grpc.health.v1.Health/Check"
METHODS = ("ModelInfer", "ModelMetadata", "ModelReady", "ServerLive", "ServerReady", "ServerMetadata")
"""The gRPC methods open to callers; all others are refused."""
OPEN_PATHS = ("/", "/page.css", "/page.js", "/openapi.json", "/v2/health/live", "/v2/health/ready")
"""HTTP paths that need no key: they reveal nothing about the model."""
READY_PATH = "/v2/health/ready"
MODEL_PATHS = f"/v2/models/{CLASSIFIER_NAME}(/versions/[0-9]{{1,9}})?(/ready|/infer)?"
"""Regular expression for the remaining paths of KServe V2 over HTTP."""
HTTP_PATHS = (*OPEN_PATHS, "/classify", "/explain", "/v2")
NOT_HERE = "maximum queue size|not at ready state|no available versions|stopped accepting|Server not ready"
"""Triton's UNAVAILABLE messages that are worth a retry on another replica. "Request timeout expired" is not:
that call has used up its waiting time."""
LUA = Path(__file__).with_name("gateway.lua")


def routes(access: Access, *, control_header: str, draining: bool = False) -> Json:
    """Build the route document.

    Args:
        access: the callers' keys.
        control_header: removed from requests, because it opens the servers' restricted methods.
        draining: health checks fail; calls are still answered.
    """
    drained = [{"match": {"path": path}, **_reply(503, "draining")} for path in (HEALTH, READY_PATH)]
    http = [{"path": path} for path in HTTP_PATHS] + [{"safe_regex": {"regex": MODEL_PATHS}}]
    web = [{"match": {**path, "headers": [grpc_header(False)]}, "route": _to_web()} for path in http]
    document = _document(
        access,
        [*(drained if draining else []), *_grpc(), *web],
        [control_header, KEY_NAME_HEADER, API_KEY_HEADER],
    )
    (host,) = document["virtual_hosts"]
    keyed = [key for key in access.keys or () if key.requests_per_s]
    if keyed:
        host["typed_per_filter_config"]["envoy.filters.http.local_ratelimit"] = _limits(
            {key.name: key.requests_per_s for key in keyed}
        )
    return {"@type": f"{PACKAGE}.config.route.v3.RouteConfiguration", **document}


def inner_routes() -> Json:
    """Routes for the HTTP server: the gRPC methods without keys, which the outer listener checks."""
    return _document(Access(), _grpc(), [])


def grpc_header(wanted: bool) -> Json:
    """A matcher for gRPC requests, or for all others."""
    return {
        "name": "content-type",
        "string_match": {"prefix": "application/grpc"},
        "invert_match": not wanted,
        "treat_missing_header_as_empty": True,
    }


def _document(access: Access, allowed: list[Json], removed: list[str]) -> Json:
    compressed = {
        "name": "grpc-encoding",
        "string_match": {"exact": "identity"},
        "invert_match": True,
    }
    return {
        "name": "gateway",
        "request_headers_to_remove": removed,
        "virtual_hosts": [
            {
                "name": "gateway",
                "domains": ["*"],
                "routes": [
                    {  # a small compressed request can expand to any size
                        "match": {
                            "prefix": "/",
                            "headers": [{"name": "grpc-encoding", "present_match": True}, compressed],
                        },
                        **_reply(404, "compressed requests are not taken"),
                    },
                    *allowed,
                    {"match": {"prefix": "/"}, **_reply(403, "not allowed here")},
                ],
                "typed_per_filter_config": {
                    "envoy.filters.http.lua": {
                        "@type": f"{PACKAGE}.extensions.filters.http.lua.v3.LuaPerRoute",
                        "source_code": {"inline_string": _lua(access)},
                    },
                },
            }
        ],
    }


def _grpc() -> list[Json]:
    paths = [*(INFERENCE + name for name in METHODS), HEALTH]
    return [{"match": {"path": path}, "route": _to_triton()} for path in paths]


def _reply(status: int, text: str) -> Json:
    return {"direct_response": {"status": status, "body": {"inline_string": text}}}


def _to_web() -> Json:
    # The HTTP server sets its own deadline. A request that did not reach it can be retried.
    return {"cluster": "web", "timeout": f"{MAX_CALL_S}s", "retry_policy": {"retry_on": "connect-failure"}}


def _to_triton() -> Json:
    return {
        "cluster": "triton",
        "timeout": "0s",  # the next line applies the caller's deadline
        "max_stream_duration": {"max_stream_duration": f"{MAX_CALL_S}s", "grpc_timeout_header_max": "0s"},
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset,retriable-headers",
            "retriable_headers": [
                {"name": "grpc-message", "string_match": {"safe_regex": {"regex": f".*({NOT_HERE}).*"}}}
            ],
            "num_retries": 3,
            # Short, so that a refusal by all replicas reaches the caller at once.
            "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.02s"},
            "retry_host_predicate": [
                typed(
                    "envoy.retry_host_predicates.previous_hosts",
                    "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
                )
            ],
            # Least-request prefers a dead server, which has no requests: draw again until another comes.
            "host_selection_retry_max_attempts": 20,
        },
    }


def _limits(quotas: dict[str, int | None]) -> Json:
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return {
        "@type": f"{PACKAGE}.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "gateway",
        "rate_limited_as_resource_exhausted": True,
        # Callers without their own quota get a limit that is never reached.
        "token_bucket": {"max_tokens": 1_000_000, "tokens_per_fill": 1_000_000, "fill_interval": "0.1s"},
        "filter_enabled": always,
        "filter_enforced": always,
        "rate_limits": [
            {"actions": [{"request_headers": {"header_name": KEY_NAME_HEADER, "descriptor_key": "key"}}]}
        ],
        "descriptors": [
            {
                "entries": [{"key": "key", "value": name}],
                "token_bucket": {"max_tokens": quota, "tokens_per_fill": quota, "fill_interval": "1s"},
            }
            for name, quota in quotas.items()
        ],
    }


def _lua(access: Access) -> str:
    """The Lua filter preceded by the keys; `ApiKey` restricts names and hashes, so they need no quoting."""
    opened = ",".join(f'["{path}"]=true' for path in OPEN_PATHS)
    limits = f"TRY_SHARE, MIN_TRY_MS = {TRY_SHARE}, {MIN_TRY_MS}\nOPEN_PATHS = {{{opened}}}\n"
    keys = "nil" if access.keys is None else "{" + ",".join(map(_lua_row, access.keys)) + "}"
    return f"KEYS = {keys}\n{limits}{LUA.read_text('utf-8')}"


def _lua_row(key: ApiKey) -> str:
    expires_s = key.expires_s()
    expires = "nil" if expires_s is None else int(expires_s)
    return f'["{key.sha256}"]={{name="{key.name}",disabled={str(key.disabled).lower()},expires={expires}}}'
