"""The metrics that scrapes bring, what an expression asks for beside them, and the dashboards' queries."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import promql_parser
import yaml
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import AggregateExpr, BinaryExpr, MatchOp, VectorSelector

MONITORING = Path(__file__).parents[1] / "monitoring"
CAPTURED = MONITORING / "captured"
DASHBOARDS = MONITORING / "grafana" / "dashboards"
OF_PROMETHEUS = (
    ("up", {"job": "triton"}),
    ("up", {"job": "envoy"}),
    ("up", {"job": "drift"}),
    ("ALERTS", {"alertname": "", "alertstate": "firing", "severity": "page"}),
)
OF_A_TARGET = {"instance", "job"}


@dataclass(frozen=True)
class Known:
    """The series that scrapes and recording rules bring."""

    series: list[tuple[str, dict[str, str]]]
    recorded: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def names(self) -> set[str]:
        """Of everything that can be asked for."""
        return {name for name, _ in (*self.series, *self.recorded)}

    @property
    def labels(self) -> set[str]:
        """Names of all labels."""
        return {label for _, labels in (*self.series, *self.recorded) for label in labels} | OF_A_TARGET

    def candidates(self, name: str) -> list[dict[str, str]]:
        """Label sets that series of this name may have.

        Which labels a recording rule keeps of what it reads is not computed: it may have any.
        """
        if not any(name == one for one, _ in self.recorded):
            return [labels for one, labels in self.series if one == name]
        own = [labels for one, labels in self.recorded if one == name]
        return [{**labels, **static} for _, labels in (*self.series, *self.recorded) for static in own]


def known_series(*pages: str) -> Known:
    """Everything on these pages, renamed as our Prometheus renames it, and what our rules record."""
    jobs = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    (relabel,) = (job["metric_relabel_configs"] for job in jobs if job["job_name"] == "envoy")
    series = [_relabelled(name, labels, relabel) for page in pages for name, labels in _samples(page)]
    recorded = [(rule["record"], rule.get("labels", {})) for rule in rules() if "record" in rule]
    return Known([*series, *OF_PROMETHEUS], recorded)


def rules() -> list[dict]:
    """All recording and alerting rules."""
    return [
        rule
        for path in sorted((MONITORING / "rules").glob("*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]


def alerts() -> dict[str, dict]:
    """The alerting rules by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def dashboards() -> dict[str, dict]:
    """The committed Grafana dashboards by uid, which is also the name of the file."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(DASHBOARDS.glob("*.json"))}


def panels(dashboard: dict) -> list[dict]:
    """A dashboard's panels, without the headings between them."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def targets() -> list[dict]:
    """Every query of every panel of every dashboard, as Grafana writes it: `expr`, `legendFormat`."""
    return [one for board in dashboards().values() for panel in panels(board) for one in panel["targets"]]


def problems(expr: str, known: Known) -> list[str]:
    """What an expression asks for that nothing brings: metrics, labels, values of labels."""
    found: list[str] = []

    def look(node: object) -> None:
        if isinstance(node, VectorSelector):
            found.extend(_selector_problems(node, known))
        labels: Iterable[str] = ()
        if isinstance(node, AggregateExpr) and node.modifier is not None:
            labels = node.modifier.labels
        elif (
            isinstance(node, BinaryExpr) and node.modifier is not None and node.modifier.matching is not None
        ):
            labels = node.modifier.matching.labels
        found.extend(f"no label {label}" for label in labels if label not in known.labels)

    promql_parser.walk(promql_parser.parse(expr), look)
    return found


def _selector_problems(selector: VectorSelector, known: Known) -> list[str]:
    if selector.name not in known.names:
        return [f"no metric {selector.name}"]
    matching = known.candidates(selector.name)
    for matcher in selector.matchers.matchers:
        if not any(matcher.name in labels for labels in matching):
            return [f"{selector.name} has no label {matcher.name}"]
        is_regex = matcher.op in (MatchOp.Re, MatchOp.NotRe)
        pattern = matcher.value if is_regex else re.escape(matcher.value)
        fits = [labels for labels in matching if re.fullmatch(pattern, labels.get(matcher.name, ""))]
        if not fits:  # what is left out has to exist as well, or the matcher says nothing
            return [f"{selector.name} never has {matcher.name}={matcher.value!r}"]
        is_wanted = matcher.op in (MatchOp.Equal, MatchOp.Re)
        matching = fits if is_wanted else [labels for labels in matching if labels not in fits]
        if not matching:
            return [f"{selector.name} never has {matcher.name}={matcher.value!r}, or not with the rest"]
    return []


def _samples(page: str) -> list[tuple[str, dict[str, str]]]:
    """Names as on the page: the parser appends _total to a counter's."""
    families = list(text_string_to_metric_families(page))
    written = set(re.findall(r"^([a-zA-Z_:][\w:]*)[{ ]", page, re.MULTILINE))
    return [
        (sample.name if sample.name in written else sample.name.removesuffix("_total"), sample.labels)
        for family in families
        for sample in family.samples
    ]


def _relabelled(name: str, labels: dict[str, str], configs: list[dict]) -> tuple[str, dict[str, str]]:
    """Prometheus's default relabel action, replace."""
    labels = {**labels, "__name__": name}
    for config in configs:
        source = ";".join(labels.get(label, "") for label in config["source_labels"])
        if match := re.fullmatch(config["regex"], source):
            labels[config["target_label"]] = match.expand(re.sub(r"\$(\d)", r"\\\1", config["replacement"]))
    return labels.pop("__name__"), labels
