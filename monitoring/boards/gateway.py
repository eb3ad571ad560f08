"""The gateway: what callers see, how Envoy treats the replicas."""

from monitoring.board import Board, Panel, Query, Row

_TRITON = '{envoy_cluster_name="triton"}'
_LISTENER = '{envoy_http_conn_manager_prefix="gateway"}'

_CALLERS = Row(
    title="What callers see",
    panels=(
        Panel(
            title="Calls",
            description="ModelInfer calls per second.",
            unit="reqps",
            kind="stat",
            base_color="blue",
            queries=(Query(expr="gateway:calls:rate1m", legend="calls"),),
        ),
        Panel(
            title="Failed by our fault",
            description="UNKNOWN, DEADLINE_EXCEEDED, ABORTED, INTERNAL, UNAVAILABLE, DATA_LOSS. The"
            " objective is 0.1 %.",
            unit="percentunit",
            kind="stat",
            steps=((0.001, "orange"), (0.01, "red")),
            queries=(Query(expr="gateway:errors:rate1m / gateway:calls:rate1m", legend="failed"),),
        ),
        Panel(
            title="p99",
            description="From the whole request received to the whole answer, repetitions included, uploads"
            " not. The"
            " objective: 99 % within 500 ms.",
            unit="s",
            kind="stat",
            steps=((0.25, "orange"), (0.5, "red")),
            queries=(Query(expr='gateway:duration_seconds:quantile1m{quantile="0.99"}', legend="p99"),),
        ),
        Panel(
            title="Given up",
            description="Calls that clients reset before the answer, mostly at their own deadline. They have"
            " no status"
            " code.",
            unit="percentunit",
            kind="stat",
            steps=((0.01, "orange"), (0.05, "red")),
            queries=(Query(expr="gateway:given_up:ratio1m", legend="given up"),),
        ),
        Panel(
            title="Healthy replicas",
            description="The fewest that any gateway sees.",
            unit="none",
            kind="stat",
            base_color="red",
            steps=((1, "green"),),
            queries=(Query(expr=f"min(envoy_cluster_membership_healthy{_TRITON})", legend="healthy"),),
        ),
        Panel(
            title="Certificate",
            description="Days until the first certificate expires.",
            unit="d",
            kind="stat",
            base_color="red",
            steps=((3, "orange"), (14, "green")),
            names=((4294967295, 4294967295, "no TLS"),),
            queries=(Query(expr="min(envoy_server_days_until_first_cert_expiring)", legend="days"),),
        ),
        Panel(
            title="Answers by status code",
            description="0 OK, 1 CANCELLED, 2 UNKNOWN, 3 INVALID_ARGUMENT, 4 DEADLINE_EXCEEDED, 5 NOT_FOUND,"
            " 7"
            " PERMISSION_DENIED, 8 RESOURCE_EXHAUSTED, 12 UNIMPLEMENTED, 13 INTERNAL, 14 UNAVAILABLE, 16"
            " UNAUTHENTICATED. Envoy's response code classes say 2xx to all of them.",
            unit="reqps",
            kind="stacked",
            queries=(Query(expr="gateway:answers:rate1m", legend="code {{grpc_code}}"),),
        ),
        Panel(
            title="Time",
            description="Quantiles, from buckets: 250 and 500 ms are the edges near the objective.",
            unit="s",
            steps=((0.5, "red"),),
            queries=(Query(expr="gateway:duration_seconds:quantile1m", legend="quantile {{quantile}}"),),
        ),
    ),
)

_UPSTREAM = Row(
    title="How the replicas are treated",
    panels=(
        Panel(
            title="Replicas",
            description="Known, healthy, and ejected for their errors.",
            unit="none",
            queries=(
                Query(expr=f"envoy_cluster_membership_total{_TRITON}", legend="known to {{instance}}"),
                Query(expr=f"envoy_cluster_membership_healthy{_TRITON}", legend="healthy for {{instance}}"),
                Query(
                    expr=f"envoy_cluster_outlier_detection_ejections_active{_TRITON}",
                    legend="ejected by {{instance}}",
                ),
            ),
        ),
        Panel(
            title="Repetitions",
            description="Repeated, repeated with success, not repeated because the retry budget was spent,"
            " and not"
            " repeated because the request had outgrown the buffer. The last has to stay 0.",
            unit="reqps",
            queries=(
                Query(expr=f"sum(rate(envoy_cluster_upstream_rq_retry{_TRITON}[1m]))", legend="repeated"),
                Query(
                    expr=f"sum(rate(envoy_cluster_upstream_rq_retry_success{_TRITON}[1m]))",
                    legend="with success",
                ),
                Query(
                    expr=f"sum(rate(envoy_cluster_upstream_rq_retry_overflow{_TRITON}[1m]))",
                    legend="over budget",
                ),
                Query(
                    expr=f"sum(rate(envoy_cluster_retry_or_shadow_abandoned{_TRITON}[1m]))",
                    legend="too large",
                ),
            ),
        ),
        Panel(
            title="Under way",
            description="Requests from callers, requests at replicas, and those that wait for a connection.",
            unit="short",
            queries=(
                Query(expr=f"sum(envoy_http_downstream_rq_active{_LISTENER})", legend="from callers"),
                Query(expr=f"sum(envoy_cluster_upstream_rq_active{_TRITON})", legend="at replicas"),
                Query(expr=f"sum(envoy_cluster_upstream_rq_pending_active{_TRITON})", legend="waiting"),
            ),
        ),
        Panel(
            title="Refused by the circuit breaker",
            description="Part of the calls. The alert fires at 1 %.",
            unit="percentunit",
            steps=((0.01, "red"),),
            queries=(Query(expr="gateway:overflow:ratio1m", legend="refused"),),
        ),
        Panel(
            title="Connections",
            description="Open ones. Callers with a connection each are few lines; a new one for each call is"
            " a mistake.",
            unit="short",
            queries=(
                Query(expr=f"sum(envoy_http_downstream_cx_active{_LISTENER})", legend="from callers"),
                Query(expr=f"sum(envoy_cluster_upstream_cx_active{_TRITON})", legend="to replicas"),
            ),
        ),
        Panel(
            title="Envoy's memory",
            description="Physical memory of each gateway process.",
            unit="bytes",
            queries=(Query(expr="envoy_server_memory_physical_size", legend="{{instance}}"),),
        ),
    ),
)

GATEWAY = Board(
    uid="fruitstand-gateway",
    title="fruitstand: gateway",
    description="Envoy: status codes, quantiles, repetitions, healthy replicas, limits.",
    rows=(_CALLERS, _UPSTREAM),
)
