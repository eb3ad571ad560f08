"""What a dashboard is made of, and how that becomes Grafana's own model."""

from dataclasses import dataclass
from typing import Literal

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model

Unit = Literal[
    "none", "short", "percentunit", "s", "bytes", "watt", "d", "reqps",
    "suffix: images/s", "suffix: batches/s", "suffix: images/J",
]  # fmt: skip
"""Those of Grafana that our dashboards use: an invented one would be drawn as a suffix."""

PAGE_WIDTH = 24
DATASOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One line, or one line for each value of the labels that `legend` names."""

    expr: str
    """PromQL; a test asks every metric, label and label value in it of a metrics page."""
    legend: str
    """With {{label}} in place of a label's value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One picture."""

    title: str
    description: str
    """What it shows, and what to think of it."""
    unit: Unit
    queries: tuple[Query, ...]
    kind: Literal["stat", "lines", "stacked"] = "lines"
    steps: tuple[tuple[float, str], ...] = ()
    """Where the colour changes, ascending: (value, colour). Below the first one it is green."""
    base_color: str = "green"
    """The colour below the first step."""
    maximum: float | None = None
    """Of the axis, where the values have a natural one."""
    names: tuple[tuple[float, float, str], ...] = ()
    """(from, to, text): values that are said in words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Panels under one heading: the figures first, together as wide as the page; pictures half of it each."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """One dashboard."""

    uid: str
    """In its URL, and the name of its file."""
    title: str
    description: str
    rows: tuple[Row, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All panels, in the order of the page."""
        return tuple(panel for row in self.rows for panel in row.panels)


def to_grafana(board: Board) -> model.Dashboard:
    """Build Grafana's model of a dashboard; numbers and places of the panels follow from their order."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["fruitstand"])
        .readonly()
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("fruitstand")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags(["fruitstand"])
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    number = 0
    for row in board.rows:
        number += 1
        built.with_row(dashboard.Row(row.title).id(number))
        num_stats = sum(panel.kind == "stat" for panel in row.panels)
        for panel in row.panels:
            number += 1
            width = PAGE_WIDTH // (num_stats if panel.kind == "stat" else 2)
            built.with_panel(_panel(panel).id(number).span(width))
    return built.build()


def _panel(panel: Panel) -> stat.Panel | timeseries.Panel:
    built = _stat() if panel.kind == "stat" else _graph(panel)
    built.title(panel.title).description(panel.description).unit(panel.unit).datasource(DATASOURCE).min(0)
    if panel.maximum is not None:
        built.max(panel.maximum)
    steps = [model.Threshold(value=None, color=panel.base_color)]
    steps += [model.Threshold(value=value, color=color) for value, color in panel.steps]
    built.thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
    if panel.names:
        built.mappings([_range_name(*name) for name in panel.names])
    for position, query in enumerate(panel.queries):
        target = prometheus.Dataquery().ref_id(chr(ord("A") + position)).datasource(DATASOURCE)
        target.expr(query.expr).legend_format(query.legend)
        built.with_target(target.instant() if panel.kind == "stat" else target.range())
    return built


def _stat() -> stat.Panel:
    return (
        stat.Panel()
        .height(4)
        .color_mode(common_model.BigValueColorMode.BACKGROUND)
        .graph_mode(common_model.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value("nothing to measure")
    )


def _graph(panel: Panel) -> timeseries.Panel:
    stacked = panel.kind == "stacked"
    built = (
        timeseries.Panel()
        .height(8)
        .line_width(1)
        .fill_opacity(30 if stacked else 8)
        .show_points(common_model.VisibilityMode.NEVER)
        .tooltip(common.VizTooltipOptions().mode(common_model.TooltipDisplayMode.MULTI))
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(common_model.LegendDisplayMode.TABLE)
            .placement(common_model.LegendPlacement.BOTTOM)
            .calcs(["mean", "max", "lastNotNull"])
        )
    )
    if stacked:
        built.stacking(common.StackingConfig().mode(common_model.StackingMode.NORMAL))
    if panel.steps:
        built.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_model.GraphThresholdsStyleMode.DASHED)
        )
    return built


def _range_name(lowest: float, highest: float, text: str) -> model.RangeMap:
    result = model.ValueMappingResult(text=text)
    return model.RangeMap(options=model.DashboardRangeMapOptions(from_val=lowest, to=highest, result=result))
