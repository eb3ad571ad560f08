import re
import shutil
import subprocess
from pathlib import Path

import grpc
import promql_parser
import pytest
import yaml
from promql_parser import VectorSelector

from tests.metrics_pages import MONITORING, alerts, rules, targets

ROOT = MONITORING.parent
CASES = sorted((MONITORING / "tests").glob("*.yml"))
TARGETS = MONITORING / "targets"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()


@pytest.fixture(scope="session")
def promtool() -> str:
    """Prometheus's own checker."""
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("needs promtool: `make system` as root installs it on Debian")
    return path


def verdicts() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """For each alert, the metrics given to the cases in which it fires, and in which it is silent."""
    fires: dict[str, set[str]] = {}
    silent: dict[str, set[str]] = {}
    for path in CASES:
        for case in yaml.safe_load(path.read_text())["tests"]:
            given = {re.match(r"[\w:]+", series["series"])[0] for series in case["input_series"]}
            for check in case["promql_expr_test"]:
                if (match := re.search(r'ALERTS\{alertname="(\w+)"', check["expr"])) is None:
                    continue
                if check["exp_samples"]:
                    fires.setdefault(match[1], set()).update(given)
                elif "alertstate" not in check["expr"]:
                    silent.setdefault(match[1], set()).update(given)
    return fires, silent


def read_metrics(expr: str) -> set[str]:
    """Names of the metrics that an expression reads, through recording rules as well."""
    names: set[str] = set()
    recorded: dict[str, list[str]] = {}
    for rule in rules():
        if "record" in rule:
            recorded.setdefault(rule["record"], []).append(rule["expr"])

    def look(node: object) -> None:
        if isinstance(node, VectorSelector) and node.name not in names:
            names.add(node.name)
            for one in recorded.get(node.name, ()):
                promql_parser.walk(promql_parser.parse(one), look)

    promql_parser.walk(promql_parser.parse(expr), look)
    return names


def check_config(promtool: str, path: Path) -> str:
    """`promtool check config`, which reads the rule files that it names as well."""
    done = subprocess.run(
        [promtool, "check", "config", path], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_accepts_configuration_and_rules(promtool: str) -> None:
    """As they are."""
    said = check_config(promtool, MONITORING / "prometheus.yml")
    assert f"{len(list((MONITORING / 'rules').glob('*.yml')))} rule files found" in said


def test_what_is_not_there_is_not_scraped() -> None:
    """A target that never ran would page for ever: by itself only the server is one."""
    jobs = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    files = {one for job in jobs for sd in job["file_sd_configs"] for one in sd["files"]}
    assert {path.name for path in TARGETS.glob("*.yml")} == {"triton.yml"}
    for path in TARGETS.rglob("*.yml"):
        assert f"targets/{path.name}" in files, f"no job reads {path}"


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in CASES])
def test_alerts_fire_and_stay_silent_as_their_cases_say(path: Path, promtool: str) -> None:
    """`promtool test rules`."""
    done = subprocess.run(
        [promtool, "test", "rules", path], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_notices_a_threshold_that_moved(promtool: str, tmp_path: Path) -> None:
    """The cases are no decoration: with a hundredth of the threshold the silent one fails."""
    copy = shutil.copytree(MONITORING, tmp_path / "monitoring", ignore=shutil.ignore_patterns("grafana"))
    path = copy / "rules" / "alerts.yml"
    text = path.read_text()
    assert "gateway:retries:ratio1m > 0.1" in text
    path.write_text(text.replace("gateway:retries:ratio1m > 0.1", "gateway:retries:ratio1m > 0.001"))
    done = subprocess.run(
        [promtool, "test", "rules", copy / "tests" / "gateway.yml"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "RetryStorm" in done.stdout + done.stderr


@pytest.mark.parametrize("name", alerts())
def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_silent(name: str) -> None:
    """Silent: not even pending, with metrics that it reads. An empty database silences everything."""
    fires, silent = verdicts()
    assert name in fires
    assert silent.get(name, set()) & read_metrics(alerts()[name]["expr"]) != set()


def test_the_cases_name_no_alert_that_is_no_more() -> None:
    """A misspelt alert is silent for ever."""
    fires, silent = verdicts()
    assert set(fires) | set(silent) == set(alerts())


@pytest.mark.parametrize("name", alerts())
def test_every_alert_says_what_it_is_and_what_to_do(name: str) -> None:
    """A severity, a summary, a description, and a section of the runbook with three answers."""
    alert = alerts()[name]
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    assert alert["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
    section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert section is not None, f"docs/runbook.md has no section {name}"
    assert [heading for heading in ("**Means.**", "**Look.**", "**Do.**") if heading not in section[1]] == []


def test_the_runbook_has_no_alert_that_is_no_more() -> None:
    """Every third-level heading is an alert."""
    assert set(re.findall(r"^### (\w+)", RUNBOOK, re.MULTILINE)) == set(alerts())


@pytest.mark.parametrize("model", ["image_decode", "image_guard", "image_decode_dali"])
def test_the_alert_on_the_queue_knows_the_queues_limit(model: str) -> None:
    """`max_queue_size` of the embedded server's first step, and of NVIDIA's two in its place."""
    text = (ROOT / "model_repository" / model / "config.pbtxt").read_text()
    limit = re.search(r"max_queue_size: (\d+)", text)
    assert limit is not None
    assert alerts()["QueueSaturated"]["expr"].endswith(f"> 0.8 * {limit[1]}")


def test_the_gateways_errors_are_the_status_codes_that_are_our_fault() -> None:
    """By gRPC's own numbers."""
    (expr,) = (rule["expr"] for rule in rules() if rule.get("record") == "gateway:errors:rate1m")
    match = re.search(r'grpc_code=~"([\d|]+)"', expr)
    assert match is not None
    ours = {"UNKNOWN", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
    assert set(map(int, match[1].split("|"))) == {
        code.value[0] for code in grpc.StatusCode if code.name in ours
    }


def test_every_recorded_series_is_read_by_something() -> None:
    """A rule that nothing reads costs memory for nothing."""
    expressions = [one["expr"] for one in (*alerts().values(), *targets())]
    read = {name for expr in expressions for name in read_metrics(expr)}
    assert {rule["record"] for rule in rules() if "record" in rule} - read == set()
