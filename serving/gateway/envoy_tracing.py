"""What a gateway that traces has beside the others: a tracer, its collector, and a look at `traceparent`."""

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
"""Triton traces whatever has a `traceparent` (24.10): one that says no goes no further."""


def add_tracing(bootstrap: Json, tracing: Tracing) -> None:
    """Let a gateway send its spans to a collector.

    Args:
        bootstrap: of `gateway_config.bootstrap`; changed in place.
        tracing: where to, and how many.
    """
    resources = bootstrap["static_resources"]
    for listener in resources["listeners"]:
        if listener["name"] in ("gateway", "http"):
            listener["filter_chains"][0]["filters"][0]["typed_config"]["tracing"] = _tracer(tracing)
    (options,) = resources["clusters"][0]["typed_extension_protocol_options"].values()
    options["http_filters"] = [
        # Not the name of the filter for keys, or the routes would give it that one's program.
        typed(
            "fruitstand.traceparent",
            "extensions.filters.http.lua.v3.Lua",
            default_source_code={"inline_string": DROP_UNTRACED},
        ),
        typed("envoy.filters.http.upstream_codec", "extensions.filters.http.upstream_codec.v3.UpstreamCodec"),
    ]
    resources["clusters"].append({"name": COLLECTOR} | named_servers(COLLECTOR, *tracing.address))


def _tracer(tracing: Tracing) -> Json:
    """Callers' `traceparent` decides, and where there is none a share of the traces' numbers."""
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
        # Triton becomes the caller's child, not the gateway's: of the gateway every request would get a
        # context, and Triton would trace it.
        "no_context_propagation": True,
    }
