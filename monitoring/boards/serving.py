"""The server: golden signals, batches, the time in each step, what was refused, replicas and versions."""

from monitoring.board import Board, Panel, Query, Row

_SIGNALS = Row(
    title="Golden signals",
    panels=(
        Panel(
            title="Images",
            description="Images classified per second, over all replicas.",
            unit="suffix: images/s",
            kind="stat",
            base_color="blue",
            queries=(Query(expr='model:images:rate1m{model="fruit_classifier"}', legend="images"),),
        ),
        Panel(
            title="Calls",
            description="Requests per second, answered or not. One request holds one to 64 images.",
            unit="reqps",
            kind="stat",
            base_color="blue",
            queries=(Query(expr="server:calls:rate1m", legend="calls"),),
        ),
        Panel(
            title="Failed by our fault",
            description="Queue full, waited too long, or a step failed. Bad images and cancelled calls do"
            " not count."
            " The objective is 0.1 %.",
            unit="percentunit",
            kind="stat",
            steps=((0.001, "orange"), (0.01, "red")),
            queries=(Query(expr="server:errors:rate1m / server:calls:rate1m", legend="failed"),),
        ),
        Panel(
            title="Mean time",
            description="From a request's arrival at Triton to its answer. Quantiles are on the dashboard"
            " Gateway:"
            " Triton's counters have none.",
            unit="s",
            kind="stat",
            steps=((0.25, "orange"), (0.5, "red")),
            queries=(Query(expr='model:request_seconds:mean1m{model="fruit_classifier"}', legend="mean"),),
        ),
        Panel(
            title="Waiting",
            description="Requests in the queues of both steps.",
            unit="short",
            kind="stat",
            steps=((256, "orange"), (819, "red")),
            queries=(
                Query(expr='sum(model:pending_requests:sum{model!="fruit_classifier"})', legend="waiting"),
            ),
        ),
        Panel(
            title="Mean batch",
            description="Images that fruit_resnet works on at once.",
            unit="none",
            kind="stat",
            base_color="blue",
            queries=(Query(expr='model:mean_batch:ratio1m{model="fruit_resnet"}', legend="images"),),
        ),
        Panel(
            title="Rate: images",
            description="Images per second of each model. The three lines lie on each other; where"
            " image_decode runs"
            " ahead, images are refused or cancelled between the steps.",
            unit="suffix: images/s",
            queries=(Query(expr="model:images:rate1m", legend="{{model}}"),),
        ),
        Panel(
            title="Errors: calls that failed, by cause",
            description="refused_image and canceled are the clients' own. The ensemble's own counter counts"
            " each"
            " failure twice; this does not.",
            unit="reqps",
            kind="stacked",
            queries=(Query(expr="server:failures:rate1m", legend="{{cause}}"),),
        ),
        Panel(
            title="Latency: mean time of a request",
            description="fruit_classifier is what a client waits for, the other two are its steps.",
            unit="s",
            queries=(Query(expr="model:request_seconds:mean1m", legend="{{model}}"),),
        ),
        Panel(
            title="Saturation: waiting requests",
            description="The decode step refuses what comes when 1,024 wait; at 819 the alert QueueSaturated"
            " fires.",
            unit="short",
            steps=((819, "orange"), (1024, "red")),
            queries=(
                Query(expr='model:pending_requests:sum{model!="fruit_classifier"}', legend="{{model}}"),
            ),
        ),
    ),
)

_BATCHES = Row(
    title="Batches and steps",
    panels=(
        Panel(
            title="Mean batch",
            description="Images per execution. Near 1 under load means that batching is broken.",
            unit="none",
            queries=(Query(expr="model:mean_batch:ratio1m", legend="{{model}}"),),
        ),
        Panel(
            title="Queue share",
            description="Part of the time in a step that is waiting. Above one half a replica more would"
            " help.",
            unit="percentunit",
            maximum=1,
            steps=((0.5, "orange"),),
            queries=(Query(expr="model:queue_share:ratio1m", legend="{{model}}"),),
        ),
        Panel(
            title="Time in image_decode",
            description="Mean of one request: waiting, input, decode and resize, output.",
            unit="s",
            kind="stacked",
            queries=(Query(expr='model:phase_seconds:mean1m{model="image_decode"}', legend="{{phase}}"),),
        ),
        Panel(
            title="Time in fruit_resnet",
            description="Mean of one request: waiting, input, inference, output.",
            unit="s",
            kind="stacked",
            queries=(Query(expr='model:phase_seconds:mean1m{model="fruit_resnet"}', legend="{{phase}}"),),
        ),
        Panel(
            title="Executions",
            description="Batches per second of each step.",
            unit="suffix: batches/s",
            queries=(Query(expr='model:batches:rate1m{model!="fruit_classifier"}', legend="{{model}}"),),
        ),
        Panel(
            title="Requests in a step",
            description="Mean number at any moment, waiting ones included (Little's law: seconds per"
            " second).",
            unit="short",
            queries=(Query(expr="model:request_seconds:rate1m", legend="{{model}}"),),
        ),
    ),
)

_REFUSED = Row(
    title="Refused and failed",
    panels=(
        Panel(
            title="Shed for overload",
            description="Part of all calls that found the queue full or waited too long. The alert fires at"
            " 1 %.",
            unit="percentunit",
            steps=((0.01, "red"),),
            queries=(Query(expr="server:shed:ratio1m", legend="shed"),),
        ),
        Panel(
            title="The steps' own failures",
            description="As Triton counts them: REJECTED waited too long, CANCELED was given up, BACKEND"
            " failed."
            " A full queue is in none of them.",
            unit="reqps",
            queries=(
                Query(
                    expr="sum by (model, reason)"
                    ' (rate(nv_inference_request_failure{model!="fruit_classifier"}[1m]))',
                    legend="{{model}} {{reason}}",
                ),
            ),
        ),
    ),
)

_REPLICAS = Row(
    title="Replicas and versions",
    panels=(
        Panel(
            title="Images of each replica",
            description="Even lines: the gateway balances.",
            unit="suffix: images/s",
            queries=(
                Query(
                    expr='sum by (instance) (rate(nv_inference_count{model="fruit_classifier"}[1m]))',
                    legend="{{instance}}",
                ),
            ),
        ),
        Panel(
            title="Waiting at each replica",
            description="Requests in the queues before the decoder, which have a limit.",
            unit="short",
            queries=(
                Query(
                    expr='sum by (instance) (nv_inference_pending_request_count{model=~"image_.*"})',
                    legend="{{instance}}",
                ),
            ),
        ),
        Panel(
            title="Versions in service",
            description="Answers per second of each version of the classifier. Two at once are a promotion"
            " under way.",
            unit="reqps",
            kind="stacked",
            queries=(Query(expr="version:answered:rate1m", legend="version {{version}}"),),
        ),
        Panel(
            title="Reachable",
            description="1 where Prometheus reads the metrics, 0 where it cannot.",
            unit="none",
            maximum=1,
            queries=(Query(expr="up", legend="{{job}} {{instance}}"),),
        ),
    ),
)

SERVING = Board(
    uid="fruitstand-serving",
    title="fruitstand: serving",
    description="Triton: rate, errors, time, saturation; batches and steps; replicas and versions.",
    rows=(_SIGNALS, _BATCHES, _REFUSED, _REPLICAS),
)
