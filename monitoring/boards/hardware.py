"""The machines: processors, memory, GPUs, as Triton reports them."""

from monitoring.board import Board, Panel, Query, Row

_HOST = Row(
    title="Processors and memory",
    panels=(
        Panel(
            title="Processors",
            description="Used part of all cores of the machine, not of the server alone.",
            unit="percentunit",
            maximum=1,
            queries=(Query(expr="nv_cpu_utilization", legend="{{instance}}"),),
        ),
        Panel(
            title="Memory",
            description="Used part of the machine's memory, not of the server alone.",
            unit="percentunit",
            maximum=1,
            steps=((0.9, "red"),),
            queries=(
                Query(expr="nv_cpu_memory_used_bytes / nv_cpu_memory_total_bytes", legend="{{instance}}"),
            ),
        ),
        Panel(
            title="Pinned memory",
            description="Used part of Triton's pool for copies to and from the GPU; 0 without one.",
            unit="percentunit",
            maximum=1,
            queries=(
                Query(
                    expr="nv_pinned_memory_pool_used_bytes / nv_pinned_memory_pool_total_bytes",
                    legend="{{instance}}",
                ),
            ),
        ),
    ),
)

_GPU = Row(
    title="GPUs",
    panels=(
        Panel(
            title="GPU",
            description="Part of the time in which a kernel runs. Low while requests wait: the bottleneck is"
            " before it.",
            unit="percentunit",
            maximum=1,
            queries=(Query(expr="nv_gpu_utilization", legend="{{instance}} {{gpu_uuid}}"),),
        ),
        Panel(
            title="GPU memory",
            description="Used part, of all processes on the GPU.",
            unit="percentunit",
            maximum=1,
            steps=((0.95, "red"),),
            queries=(
                Query(
                    expr="nv_gpu_memory_used_bytes / nv_gpu_memory_total_bytes",
                    legend="{{instance}} {{gpu_uuid}}",
                ),
            ),
        ),
        Panel(
            title="Power",
            description="Drawn, and the limit at which the clock is lowered.",
            unit="watt",
            queries=(
                Query(expr="nv_gpu_power_usage", legend="{{instance}} {{gpu_uuid}}"),
                Query(expr="nv_gpu_power_limit", legend="limit {{instance}} {{gpu_uuid}}"),
            ),
        ),
        Panel(
            title="Images for a joule",
            description="Images classified for each joule that the GPUs use, over all replicas.",
            unit="suffix: images/J",
            queries=(
                Query(
                    expr='sum(model:images:rate1m{model="fruit_classifier"})'
                    " / sum(rate(nv_energy_consumption[1m]))",
                    legend="images",
                ),
            ),
        ),
    ),
)

HARDWARE = Board(
    uid="fruitstand-hardware",
    title="fruitstand: hardware",
    description="Processors, memory and GPUs of the machines that serve.",
    rows=(_HOST, _GPU),
)
