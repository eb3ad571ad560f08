"""What may be called through the gateway, by whom and how often: Envoy's route document.

It is the part that changes while the gateway runs, as keys are added and disabled.
"""

from pathlib import Path

from fruitstand.contract import API_KEY_HEADER
from serving.gateway.access import Access
from serving.gateway.envoy_json import PACKAGE, Json, typed
from serving.gateway.limits import MAX_CALL_S, MIN_TRY_MS, TRY_SHARE

KEY_NAME_HEADER = "x-fruitstand-key"
INFERENCE = "/inference.GRPCInferenceService/"
HEALTH = "/grpc.health.v1.Health/Check"
METHODS = ("ModelInfer", "ModelMetadata", "ModelReady", "ServerLive", "ServerReady", "ServerMetadata")
"""What callers may do; everything else is refused."""
NOT_HERE = "maximum queue size|not at ready state|no available versions|stopped accepting|Server not ready"
"""Triton's words for UNAVAILABLE where another replica may answer. "Request timeout expired" is UNAVAILABLE
too. That call has waited as long as it may: asked again it would wait as long once more, behind others."""
LUA = Path(__file__).with_name("gateway.lua")


def routes(access: Access, *, control_header: str, draining: bool = False) -> Json:
    """What may be called and by whom.

    Args:
        access: the callers' keys.
        control_header: never let through: with it callers could reach what the servers restrict.
        draining: health is not serving any more; calls still are.
    """
    health: Json = {"match": {"path": HEALTH}}
    if draining:
        health["direct_response"] = {"status": 503, "body": {"inline_string": "draining"}}
    else:
        health["route"] = _to_triton()
    keyed = [key for key in access.keys or () if key.requests_per_s]
    limits: Json = {}
    if keyed:
        limits = {
            "envoy.filters.http.local_ratelimit": _limits({key.name: key.requests_per_s for key in keyed})
        }
    compressed = {
        "name": "grpc-encoding",
        "string_match": {"exact": "identity"},
        "invert_match": True,
    }
    return {
        "@type": f"{PACKAGE}.config.route.v3.RouteConfiguration",
        "name": "gateway",
        "request_headers_to_remove": [control_header, KEY_NAME_HEADER, API_KEY_HEADER],
        "virtual_hosts": [
            {
                "name": "gateway",
                "domains": ["*"],
                "routes": [
                    {  # a small compressed request may be of any size
                        "match": {
                            "prefix": "/",
                            "headers": [{"name": "grpc-encoding", "present_match": True}, compressed],
                        },
                        "direct_response": {
                            "status": 404,
                            "body": {"inline_string": "compressed requests are not taken"},
                        },
                    },
                    *({"match": {"path": INFERENCE + name}, "route": _to_triton()} for name in METHODS),
                    health,
                    {
                        "match": {"prefix": "/"},
                        "direct_response": {"status": 403, "body": {"inline_string": "not allowed here"}},
                    },
                ],
                "typed_per_filter_config": {
                    "envoy.filters.http.lua": {
                        "@type": f"{PACKAGE}.extensions.filters.http.lua.v3.LuaPerRoute",
                        "source_code": {"inline_string": _lua(access)},
                    },
                    **limits,
                },
            }
        ],
    }


def _to_triton() -> Json:
    return {
        "cluster": "triton",
        "timeout": "0s",  # the caller's deadline counts, below
        "max_stream_duration": {"max_stream_duration": f"{MAX_CALL_S}s", "grpc_timeout_header_max": "0s"},
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset,retriable-headers",
            "retriable_headers": [
                {"name": "grpc-message", "string_match": {"safe_regex": {"regex": f".*({NOT_HERE}).*"}}}
            ],
            "num_retries": 3,
            # Short: what is refused by all replicas is to be told at once.
            "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.02s"},
            "retry_host_predicate": [
                typed(
                    "envoy.retry_host_predicates.previous_hosts",
                    "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
                )
            ],
            # A dead server has the fewest requests, so least-request prefers it: draw until another comes.
            "host_selection_retry_max_attempts": 20,
        },
    }


def _limits(quotas: dict[str, int | None]) -> Json:
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return {
        "@type": f"{PACKAGE}.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "gateway",
        "rate_limited_as_resource_exhausted": True,
        # Of callers without a quota of their own: none that matters.
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
    """The filter's program with the keys before it; names and hashes were checked, they need no quoting."""
    limits = f"TRY_SHARE, MIN_TRY_MS = {TRY_SHARE}, {MIN_TRY_MS}\n"
    if access.keys is None:
        return "KEYS = nil\n" + limits + LUA.read_text("utf-8")
    rows = [
        f'["{key.sha256}"]={{name="{key.name}",disabled={str(key.disabled).lower()},'
        f"expires={'nil' if (at := key.expires_s()) is None else int(at)}}}"
        for key in access.keys
    ]
    return "KEYS = {" + ",".join(rows) + "}\n" + limits + LUA.read_text("utf-8")
