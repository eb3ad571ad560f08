import json
import re
from pathlib import Path

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.metrics_pages import DASHBOARDS, MONITORING, alerts, dashboards, panels

PROVISIONING = DASHBOARDS.parent / "provisioning"
UNITS = {
    "none", "short", "percentunit", "s", "bytes", "watt", "d", "reqps",
    "suffix: images/s", "suffix: batches/s", "suffix: images/J",
}  # fmt: skip
"""Grafana's own units that our panels use; it shows an unknown unit as a suffix without an error."""
every_board = pytest.mark.parametrize("uid", sorted(dashboards()))


def steps(panel: dict) -> list[float]:
    """The values at which a panel changes its colour, ascending."""
    return [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1:]]


@every_board
def test_grafanas_model_reads_the_dashboard_and_loses_nothing(uid: str) -> None:
    """A key that Grafana does not know would be gone after a round trip through its types."""
    register_default_plugins()
    board = dashboards()[uid]
    assert board["uid"] == uid
    assert json.loads(json.dumps(Dashboard.from_json(board), cls=JSONEncoder)) == board


@every_board
def test_panels_do_not_overlap_and_fit_the_page(uid: str) -> None:
    """No two panels share a cell, none is wider than the 24 columns, and each has its own id."""
    every_panel = dashboards()[uid]["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in every_panel)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
    assert len({panel["id"] for panel in every_panel}) == len(every_panel)


@every_board
def test_panels_explain_themselves(uid: str) -> None:
    """Each panel has a unique title, a description, a known unit, and a distinct legend for each line."""
    found = panels(dashboards()[uid])
    assert len({(panel["type"], panel["title"]) for panel in found}) == len(found)
    for panel in found:
        title = panel["title"]
        assert panel["description"].endswith("."), title
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, title
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert legends, title
        assert all(legends), title
        assert len(set(legends)) == len(legends), title
        assert steps(panel) == sorted(set(steps(panel))), title


@pytest.mark.parametrize(
    ("alert", "expr"),
    [
        pytest.param("QueueShareHigh", "model:queue_share:ratio1m", id="queue_share"),
        pytest.param("Shedding", "server:shed:ratio1m", id="shedding"),
        pytest.param("GatewayOverflow", "gateway:overflow:ratio1m", id="gateway_overflow"),
        pytest.param("DriftHigh", "max by (version) (fruitstand_drift_ratio)", id="drift"),
    ],
)
def test_the_threshold_line_of_a_graph_is_the_threshold_of_its_alert(alert: str, expr: str) -> None:
    """A threshold that was changed in one place only would mislead."""
    limit = re.search(r"> ([\d.]+)$", alerts()[alert]["expr"])
    assert limit is not None
    shown = [
        steps(panel)
        for board in dashboards().values()
        for panel in panels(board)
        if panel["type"] != "stat" and any(target["expr"] == expr for target in panel["targets"])
    ]
    assert shown == [[float(limit[1])]]


def test_grafana_is_told_where_dashboards_and_data_are() -> None:
    """Provisioning as Grafana documents it: one default Prometheus, one folder of files, nothing editable."""
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["access"], source["isDefault"]) == ("prometheus", "proxy", True)
    assert source["editable"] is False
    scrape = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "fruitstand.yml").read_text())["providers"]
    assert (provider["type"], provider["allowUiUpdates"]) == ("file", False)
    assert Path(provider["options"]["path"]).is_absolute()
