"""Tracing in the gateway: a tracer, the collector's cluster, and a filter on `traceparent`."""

from serving.gateway.envoy_json import Json, typed
from serving.gateway.upstream import named_servers
from serving.tracing import Tracing

COLLECTOR = "traces"
SAMPLERS = "extensions.tracers.opentelemetry.samplers.v3"
DROP_UNTRACED = """
function envoy_on_request(handle)
  local flags = tonumber((handle:headers():get("traceparent") or "1"):sub(-1), 16)
  if flags and flags % 2 == 0 then handle:headers():remove("traceparent") end
end
"""
"""Removes a `traceparent` whose sampled flag is off: Triton 24.10 traces every request that has one."""


def add_tracing(bootstrap: Json, tracing: Tracing) -> None:
    """Add tracing to a document of `gateway.config.bootstrap`, in place."""
    resources = bootstrap["static_resources"]
    for listener in resources["listeners"]:
        if listener["name"] in ("gateway", "http"):
            listener["filter_chains"][0]["filters"][0]["typed_config"]["tracing"] = _tracer(tracing)
    (options,) = resources["clusters"][0]["typed_extension_protocol_options"].values()
    options["http_filters"] = [
        # Another name than the key filter's, because the routes set the program of that name.
        typed(
            "fruitstand.traceparent",
            "extensions.filters.http.lua.v3.Lua",
            default_source_code={"inline_string": DROP_UNTRACED},
        ),
        typed("envoy.filters.http.upstream_codec", "extensions.filters.http.upstream_codec.v3.UpstreamCodec"),
    ]
    resources["clusters"].append({"name": COLLECTOR} | named_servers(COLLECTOR, *tracing.address))


def _tracer(tracing: Tracing) -> Json:
    """Follow the caller's `traceparent`; sample a share of the requests without one."""
    share = typed(
        "envoy.tracers.opentelemetry.samplers.trace_id_ratio_based",
        f"{SAMPLERS}.TraceIdRatioBasedSamplerConfig",
        sampling_percentage={"numerator": round(1e6 * tracing.share), "denominator": "MILLION"},
    )
    return {
        "provider": typed(
            "envoy.tracers.opentelemetry",
            "config.trace.v3.OpenTelemetryConfig",
            service_name="fruitstand-gateway",
            http_service={"http_uri": {"uri": tracing.url, "cluster": COLLECTOR, "timeout": "2s"}},
            sampler=typed(
                "envoy.tracers.opentelemetry.samplers.parent_based",
                f"{SAMPLERS}.ParentBasedSamplerConfig",
                wrapped_sampler=share,
            ),
        ),
        "random_sampling": {"value": 100},  # the sampler decides
        # Otherwise the gateway would add a context to every request, and Triton would trace all of them.
        # Triton's span is a child of the caller's, not of the gateway's.
        "no_context_propagation": True,
    }
