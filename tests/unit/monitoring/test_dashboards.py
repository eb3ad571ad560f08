import json
import re
from pathlib import Path

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.board import Board
from monitoring.boards import BOARDS
from monitoring.dashboards import DIRECTORY, render, write_dashboards

PROVISIONING = DIRECTORY.parent / "provisioning"
every_board = pytest.mark.parametrize("board", [pytest.param(board, id=board.uid) for board in BOARDS])


@every_board
def test_the_committed_dashboard_is_what_the_code_renders(board: Board) -> None:
    """`python -m monitoring.dashboards` brings them back in line."""
    assert (DIRECTORY / f"{board.uid}.json").read_text(encoding="utf-8") == render(board)


def test_the_folder_holds_the_dashboards_and_nothing_else(tmp_path: Path) -> None:
    """What is no more is removed when the others are written."""
    (tmp_path / "old.json").write_text("{}")
    write_dashboards(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{board.uid}.json" for board in BOARDS} == {path.name for path in DIRECTORY.iterdir()}


@every_board
def test_grafanas_model_reads_the_dashboard_and_loses_nothing(board: Board) -> None:
    """A key that Grafana does not know would be gone after the way through its types."""
    register_default_plugins()
    written = json.loads(render(board))
    read = json.loads(json.dumps(Dashboard.from_json(written), cls=JSONEncoder))
    assert read == written


@every_board
def test_panels_lie_side_by_side_on_the_page(board: Board) -> None:
    """No two overlap, none is wider than the page's 24 columns, and each has a number of its own."""
    panels = json.loads(render(board))["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
    assert len({panel["id"] for panel in panels}) == len(panels)


@every_board
def test_panels_explain_themselves(board: Board) -> None:
    """A title that no other panel of the kind has, a description, a legend for each line, ascending steps."""
    assert len({(panel.kind, panel.title) for panel in board.panels}) == len(board.panels)
    for panel in board.panels:
        assert panel.description.endswith("."), panel.title
        assert panel.queries, panel.title
        assert all(query.legend for query in panel.queries), panel.title
        values = [value for value, _ in panel.steps]
        assert values == sorted(set(values)), panel.title
        legends = [query.legend for query in panel.queries]
        assert len(set(legends)) == len(legends), panel.title


def test_the_alert_lines_in_the_pictures_are_those_of_the_alerts() -> None:
    """A threshold that was moved in one place only would mislead."""
    from tests.metrics_pages import alerts

    pictures = {
        (query.expr, panel.title): [value for value, _ in panel.steps]
        for board in BOARDS
        for panel in board.panels
        if panel.kind != "stat"
        for query in panel.queries
    }
    for alert, expr in (
        ("QueueShareHigh", "model:queue_share:ratio1m"),
        ("Shedding", "server:shed:ratio1m"),
        ("GatewayOverflow", "gateway:overflow:ratio1m"),
        ("DriftHigh", "max by (version) (fruitstand_drift_ratio)"),
    ):
        limit = re.search(r"> ([\d.]+)$", alerts()[alert]["expr"])
        (steps,) = (steps for (shown, _), steps in pictures.items() if shown == expr)
        assert limit is not None
        assert steps == [float(limit[1])], alert


def test_grafana_is_told_where_dashboards_and_data_are() -> None:
    """Provisioning as Grafana documents it: one default Prometheus, one folder of files, nothing editable."""
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["access"], source["isDefault"]) == ("prometheus", "proxy", True)
    assert source["editable"] is False
    scrape = yaml.safe_load((DIRECTORY.parents[1] / "prometheus.yml").read_text())["global"][
        "scrape_interval"
    ]
    assert source["jsonData"]["timeInterval"] == scrape
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "fruitstand.yml").read_text())["providers"]
    assert (provider["type"], provider["allowUiUpdates"]) == ("file", False)
    assert Path(provider["options"]["path"]).is_absolute()
