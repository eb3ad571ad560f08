"""Plot a result: over time, against load, and by step of the server."""

from pathlib import Path
from typing import Any

from fruitstand.artefacts import atomic_file
from fruitstand.network.statistics import STAGES
from loadtests.results.result import LoadResult, Point

PERCENTILES = ("p50", "p95", "p99")
DPI = 110


def draw(result: LoadResult, out: Path) -> list[Path]:
    """Write `against_load.png` to a folder, and `steps.png` and `over_time.png` if the result has the data.

    Returns:
        The paths of the files.
    """
    drawn = [_against_load(result, out / "against_load.png")]
    if result.points[0].steps:
        drawn.append(_steps(result, out / "steps.png"))
    if result.over_time:
        drawn.append(_over_time(result, out / "over_time.png"))
    return drawn


def _over_time(result: LoadResult, path: Path) -> Path:
    rows = result.over_time
    figure, (top, bottom) = new_figure(2)
    seconds = [row["second"] for row in rows]
    top.plot(seconds, [row["images_per_s"] for row in rows], label="answered")
    if result.points[0].loop == "open":
        top.plot(seconds, [row["load"] for row in rows], label="offered", linestyle="--")
    top.plot(seconds, [row["num_unanswered"] for row in rows], label="calls without an answer")
    top.set_title("Answers over time: good is close to what was offered, with no call unanswered")
    top.set_ylabel("images/s")
    top.set_ylim(bottom=0)
    for name in PERCENTILES:
        bottom.plot(seconds, [row["latency_ms"][name] for row in rows], label=name)
    bottom.set_title("Latency over time: good is low and flat")
    bottom.set_ylabel("ms")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("seconds")
    for axis in (top, bottom):
        legend_beside(axis)
    return save(figure, path)


def _against_load(result: LoadResult, path: Path) -> Path:
    figure, (top, bottom) = new_figure(2)
    for batch, points in _by_batch(result.points).items():
        loads = [point.load for point in points]
        (line,) = top.plot(loads, [point.images_per_s for point in points], "o-", label=f"batch {batch:g}")
        lows = [min(point.samples, default=point.images_per_s) for point in points]
        highs = [max(point.samples, default=point.images_per_s) for point in points]
        top.fill_between(loads, lows, highs, color=line.get_color(), alpha=0.15)
        for name, style in zip(PERCENTILES, (":", "--", "-"), strict=True):
            bottom.plot(
                loads,
                [point.latency_ms[name] for point in points],
                style,
                color=line.get_color(),
                label=f"batch {batch:g}, {name}",
            )
    for knee in result.knees:
        words = "knee" if knee.reached else "still growing"
        label = f"{words}: {knee.images_per_s:.0f} images/s at {knee.load:g}"
        for axis in (top, bottom):
            axis.axvline(knee.load, color="black", linewidth=0.8, label=label if axis is top else None)
    closed = result.points[0].loop == "closed"
    top.set_title("Throughput: higher is better; run the server at its knee or below")
    top.set_ylabel("images/s")
    top.set_ylim(bottom=0)
    bottom.set_title("Latency: lower is better; behind the knee only latency grows")
    bottom.set_ylabel("ms")
    bottom.set_yscale("log")
    plain_numbers(bottom.yaxis)
    bottom.set_xlabel("requests in flight" if closed else "images/s offered")
    for axis in (top, bottom):
        if closed:
            axis.set_xscale("log", base=2)
            loads = sorted({point.load for point in result.points})
            axis.set_xticks(loads, [f"{load:g}" for load in loads])
        legend_beside(axis)
    return save(figure, path)


def _steps(result: LoadResult, path: Path) -> Path:
    """Plot the mean milliseconds of a request in each step's queue, input, inference and output, stacked."""
    groups = _by_batch(result.points)
    figure, axes = new_figure(len(groups))
    for axis, (batch, points) in zip(axes, groups.items(), strict=True):
        positions, bottoms = list(range(len(points))), [0.0] * len(points)
        for name in [step["name"] for step in points[0].steps]:
            steps = [next(one for one in point.steps if one["name"] == name) for point in points]
            for stage in STAGES:
                values = [step["mean_ms"][stage] for step in steps]
                axis.bar(positions, values, bottom=bottoms, label=f"{name}: {stage.replace('_', ' ')}")
                bottoms = [low + value for low, value in zip(bottoms, values, strict=True)]
        axis.set_xticks(positions, [f"{point.load:g}" for point in points])
        axis.set_ylabel(f"ms, batch {batch:g}")
    closed = result.points[0].loop == "closed"
    axes[0].set_title("Where a request spends its time: lower is better; queue is waiting, not work")
    axes[-1].set_xlabel("requests in flight" if closed else "images/s offered")
    legend_beside(axes[0], reverse=True)
    return save(figure, path)


def _by_batch(points: list[Point]) -> dict[float, list[Point]]:
    groups: dict[float, list[Point]] = {}
    for point in sorted(points, key=lambda point: (point.request_batch, point.load)):
        groups.setdefault(point.request_batch, []).append(point)
    return groups


def new_figure(num_rows: int) -> tuple[Any, Any]:
    """Create a figure and its axes, from top to bottom."""
    from matplotlib.figure import Figure  # pyplot would look for a display

    figure = Figure(figsize=(9, 3.2 * num_rows), layout="constrained")
    axes = figure.subplots(num_rows, squeeze=False)[:, 0]
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    return figure, axes


def legend_beside(axis: Any, *, reverse: bool = False) -> None:
    """A legend to the right of the plot, where it covers no curve; reversed, it has the order of a stack."""
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small", frameon=False, reverse=reverse)


def plain_numbers(axis: Any) -> None:
    """Write 20, 50 and 100 on a logarithmic axis, not powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def save(figure: Any, path: Path) -> Path:
    """Write a figure as PNG."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    return path
