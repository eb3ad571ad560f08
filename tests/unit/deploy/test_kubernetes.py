import json
import re
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from deploy.gateway import render
from fruitstand.contract import MAX_BATCH_SIZE, Preprocessing
from serving.attest.exposure_checks import MIN_RELEASE
from serving.gateway.access import Access
from serving.gateway.config import MAX_CALL_S
from serving.gateway.envoy import envoy_program
from serving.gateway.limits import IN_FLIGHT_PER_REPLICA
from serving.gateway.routes import HEALTH, INFERENCE, METHODS
from serving.triton.embedded import EXIT_TIMEOUT_S, RESTRICTED_GRPC

ROOT = Path(__file__).parents[3]
KUBERNETES = ROOT / "deploy" / "kubernetes"
FRONT = KUBERNETES / "overlays" / "cpu" / "front" / "front.json"
FRONT_PORTS = {8001: 8011, 8000: 8010, 8002: 8012}
"""Ports of the pod, and ports of the embedded server behind the front."""
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
NATIVE = [name for name in OVERLAYS if name != "cpu"]
OPERATORS = {"ScaledObject", "ServiceMonitor", "ExternalSecret", "PodMonitoring"}
"""Kinds that operators bring: their schemas are not Kubernetes' own."""
every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    """What `kubectl kustomize` makes of an overlay."""
    kubectl = Path(sysconfig.get_path("scripts"), "kubectl")
    done = subprocess.run(
        [kubectl, "kustomize", KUBERNETES / "overlays" / overlay],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def one(overlay: str, kind: str, name: str) -> dict[str, Any]:
    """The object of a kind and name."""
    (found,) = (o for o in rendered(overlay) if (o["kind"], o["metadata"]["name"]) == (kind, name))
    return found


def templates(overlay: str) -> list[dict[str, Any]]:
    """The pods' templates, of Deployments and of the Job that is made when asked for."""
    specs = {o["metadata"]["name"]: o["spec"] for o in rendered(overlay) if o["kind"] == "Deployment"}
    job = one(overlay, "CronJob", "attest")["spec"]["jobTemplate"]["spec"]["template"]
    return [*(spec["template"] for spec in specs.values()), job]


def pods(overlay: str) -> list[dict[str, Any]]:
    """The pods' specifications."""
    return [template["spec"] for template in templates(overlay)]


def triton_pod(overlay: str) -> dict[str, Any]:
    """The replicas' pod; its first container is the server."""
    return one(overlay, "Deployment", "triton")["spec"]["template"]["spec"]


def kserve() -> dict[str, Any]:
    """The server of KServe's alternative."""
    (service,) = yaml.safe_load_all((KUBERNETES / "kserve" / "inference-service.yaml").read_text())
    return service["spec"]["predictor"]["model"]


def native_servers() -> list[tuple[list[str], dict[str, Any]]]:
    """Flags and container of each place that starts NVIDIA's container."""
    containers = [triton_pod(overlay)["containers"][0] for overlay in NATIVE]
    return [*((one["command"], one) for one in containers), (kserve()["args"], kserve())]


def test_the_overlays_are_those_that_are_documented() -> None:
    """gpu, cpu and GKE."""
    assert OVERLAYS == ["cpu", "gke", "gpu"]


@every_overlay
def test_every_object_is_valid_by_kubernetes_own_schema(overlay: str) -> None:
    """Strictly: a key that the API does not know is an error."""
    checked = [o for o in rendered(overlay) if o["kind"] not in OPERATORS]
    assert len(checked) >= 10
    for o in checked:
        kubernetes_validate.validate(o, "1.33", strict=True)


def test_a_misspelt_key_is_found() -> None:
    """The check above can fail."""
    broken = {**one("cpu", "Deployment", "triton")}
    broken["spec"] = {**broken["spec"], "replica": 2}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.33", strict=True)


@every_overlay
def test_tritons_image_is_the_one_that_attest_wants(overlay: str) -> None:
    """After all patches of an overlay; every image has a tag."""
    images = {
        c["image"] for pod in pods(overlay) for c in [*pod["containers"], *pod.get("initContainers", [])]
    }
    assert all(re.search(r":[\w.-]+$", image) and not image.endswith(":latest") for image in images)
    found = {image for image in images if "tritonserver" in image}
    assert found == ({f"nvcr.io/nvidia/tritonserver:{MIN_RELEASE}-py3"} if overlay in NATIVE else set())


def test_without_a_gpu_the_projects_own_image_serves() -> None:
    """NVIDIA's dali backend copies batches with CUDA, and has no driver there."""
    server, front = triton_pod("cpu")["containers"]
    assert "fruitstand-serve:" in server["image"]
    assert server["command"][:2] == ["fruitstand", "serve"]
    asked = {
        int(port)
        for flag, port in zip(server["command"], server["command"][1:], strict=False)
        if "-port" in flag
    }
    assert asked == set(FRONT_PORTS.values())
    opened = {port["containerPort"] for port in front["ports"]}
    assert opened == set(FRONT_PORTS)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"]["port"] == 8000
        assert server[probe]["httpGet"]["path"] in allowed_paths()["http"]


def allowed_paths() -> dict[str, list[str]]:
    """The paths that the front passes on, by listener."""
    return {
        manager["stat_prefix"]: [
            route["match"]["path"]
            for route in manager["route_config"]["virtual_hosts"][0]["routes"]
            if "path" in route["match"]
        ]
        for listener in json.loads(FRONT.read_text())["static_resources"]["listeners"]
        for manager in [listener["filter_chains"][0]["filters"][0]["typed_config"]]
    }


def test_the_front_passes_on_what_the_gateway_does_and_no_more() -> None:
    """Inference and health, two probes, the page for Prometheus; as many calls as the gateway may send."""
    assert allowed_paths() == {
        "grpc": [*(INFERENCE + method for method in METHODS), HEALTH],
        "http": ["/v2/health/live", "/v2/models/fruit_classifier/ready"],
        "metrics": ["/metrics"],
    }
    document = json.loads(FRONT.read_text())["static_resources"]
    server = {
        one["address"]["socket_address"]["port_value"]: cluster["load_assignment"]["endpoints"][0]
        for one, cluster in zip(document["listeners"], document["clusters"], strict=True)
    }
    assert {
        port: one["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["port_value"]
        for port, one in server.items()
    } == FRONT_PORTS
    (limits,) = (
        one["circuit_breakers"]["thresholds"] for one in document["clusters"] if one["name"] == "grpc"
    )
    assert limits[0]["max_requests"] == 2 * IN_FLIGHT_PER_REPLICA, "the gateway's retries come on top"


@pytest.mark.parametrize("spoilt", [False, True], ids=["as_rendered", "spoilt"])
def test_envoy_takes_the_front_and_refuses_what_is_misspelt(spoilt: bool, tmp_path: Path) -> None:
    """`envoy --mode validate`."""
    path = tmp_path / "front.json"
    path.write_text(FRONT.read_text().replace("route_config", "route_confik" if spoilt else "route_config"))
    command = [envoy_program(), "--mode", "validate", "--config-path", path, "--log-level", "error"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode != 0) == spoilt, done.stderr


def test_a_server_that_loads_a_model_stays_ready() -> None:
    """With strict readiness the gateway drops it, and with it every call, during a load."""
    for flags, _ in native_servers():
        assert [flag for flag in flags if "strict-readiness" in flag] == ["--strict-readiness=false"]


def test_every_model_of_the_repository_is_loaded() -> None:
    """By Triton's own word for all of them, which may stand only by itself; control stays explicit."""
    for flags, _ in native_servers():
        assert [flag for flag in flags if flag.startswith("--load-model")] == ["--load-model=*"]
        assert "--model-control-mode=explicit" in flags


def test_the_gateways_pings_do_not_end_idle_connections() -> None:
    """It pings every second; Triton by itself allows two pings without a call."""
    for flags, _ in native_servers():
        assert "--grpc-http2-max-ping-strikes=0" in flags


def test_control_needs_a_key_that_nobody_has() -> None:
    """The parts that the embedded server restricts; the key is the pod's own identity."""
    for flags, container in native_servers():
        for name, parts in (
            ("grpc-restricted-protocol", RESTRICTED_GRPC),
            ("http-restricted-api", RESTRICTED_GRPC),
        ):
            assert f"--{name}={parts}:fruitstand-control=$(CONTROL_KEY)" in flags
        (key,) = (env for env in container["env"] if env["name"] == "CONTROL_KEY")
        assert key["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.uid"}}


def test_a_start_may_take_as_long_as_tensorrts_engine() -> None:
    """A quarter of an hour at least, and then the pod is ready by model."""
    for _, container in native_servers():
        probe = container["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] >= 900
        assert container["readinessProbe"]["httpGet"]["path"] == "/v2/models/fruit_classifier/ready"


@pytest.mark.parametrize("overlay", NATIVE)
def test_shared_memory_holds_full_batches_of_the_largest_images(overlay: str) -> None:
    """Two instances of the guard, a step in Python, take images in and pass them on through it."""
    (shm,) = (volume for volume in triton_pod(overlay)["volumes"] if volume["name"] == "shm")
    assert shm["emptyDir"]["medium"] == "Memory"
    size_bytes = int(shm["emptyDir"]["sizeLimit"].removesuffix("Gi")) << 30
    assert size_bytes >= 2 * 2 * MAX_BATCH_SIZE * Preprocessing().max_encoded_bytes


@every_overlay
def test_a_job_attests_the_servers_that_were_rolled_out(overlay: str) -> None:
    """Made when asked for; with the released repository, in reach of the replicas, out of anybody's way."""
    job = one(overlay, "CronJob", "attest")["spec"]
    assert job["suspend"] is True
    pod = job["jobTemplate"]["spec"]["template"]["spec"]
    (attest,) = pod["containers"]
    assert attest["command"][:3] == ["fruitstand", "attest", "triton:8001"]
    (fetch,) = pod["initContainers"]
    (served,) = triton_pod(overlay)["initContainers"]
    assert (fetch["image"], fetch["command"], fetch["env"]) == (
        served["image"],
        served["command"],
        served["env"],
    )
    (rule, _) = one(overlay, "NetworkPolicy", "triton")["spec"]["ingress"]
    allowed = [one_peer["podSelector"]["matchLabels"] for one_peer in rule["from"]]
    assert job["jobTemplate"]["spec"]["template"]["metadata"]["labels"] in allowed


@every_overlay
def test_every_container_is_restricted(overlay: str) -> None:
    """Not root, nothing writable but its volumes, no capability, memory limited."""
    for pod in pods(overlay):
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]


@every_overlay
def test_a_replica_is_ready_when_the_model_answers_and_drains_before_it_ends(overlay: str) -> None:
    """Probes ask for the model; the grace period covers the wait and Triton's own time."""
    pod = triton_pod(overlay)
    triton = pod["containers"][0]
    for probe in ("startupProbe", "readinessProbe"):
        assert triton[probe]["httpGet"]["path"] == "/v2/models/fruit_classifier/ready"
    wait_s = int(triton["lifecycle"]["preStop"]["exec"]["command"][1])
    exits_s = [int(word.split("=")[1]) for word in triton["command"] if "exit-timeout" in word]
    drained_s = wait_s + max(exits_s, default=EXIT_TIMEOUT_S)
    assert pod["terminationGracePeriodSeconds"] > drained_s
    assert pod["terminationGracePeriodSeconds"] >= 45
    for front in pod["containers"][1:]:
        assert (
            drained_s
            <= front["lifecycle"]["preStop"]["sleep"]["seconds"]
            < pod["terminationGracePeriodSeconds"]
        )


@every_overlay
def test_the_gateway_outlives_the_calls_under_way_and_keeps_within_its_memory(overlay: str) -> None:
    """The wait before its end covers the longest call; at its own limit it refuses before it is killed."""
    (pod,) = (pod for pod in pods(overlay) if pod["containers"][0]["name"] == "envoy")
    envoy = pod["containers"][0]
    wait_s = envoy["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert MAX_CALL_S <= wait_s < pod["terminationGracePeriodSeconds"]
    monitors = render(Access())["bootstrap.json"]["overload_manager"]["resource_monitors"]
    (heap,) = (m["typed_config"]["max_heap_size_bytes"] for m in monitors if m["name"].endswith("fixed_heap"))
    assert heap < int(envoy["resources"]["limits"]["memory"].removesuffix("Mi")) << 20


@every_overlay
def test_what_is_scraped_and_probed_are_ports_that_exist(overlay: str) -> None:
    """By name, in services, monitors, policies and probes."""
    named = {p["name"] for pod in pods(overlay) for c in pod["containers"] for p in c.get("ports", [])}
    asked = set(re.findall(r"(?:port|targetPort): ([a-z]+)\b", yaml.safe_dump_all(rendered(overlay))))
    assert asked <= named


@every_overlay
def test_scaling_looks_at_what_waits(overlay: str) -> None:
    """Both queries parse and read metrics that a server of ours has shown; none is utilisation."""
    import promql_parser

    recording = (ROOT / "monitoring" / "rules" / "recording.yml").read_text()  # held against a live server
    known = set(re.findall(r"\b(?:nv|fruitstand)_\w+", recording))
    for trigger in one(overlay, "ScaledObject", "triton")["spec"]["triggers"]:
        query = trigger["metadata"]["query"]
        promql_parser.parse(query)
        names = set(re.findall(r"\b(?:nv|fruitstand)_\w+", query))
        assert names <= known
        assert "utilization" not in query


@every_overlay
def test_services_and_policies_select_pods_that_exist(overlay: str) -> None:
    """A selector with a spelling mistake selects nothing, in silence."""
    labels = [template["metadata"]["labels"] for template in templates(overlay)]
    for o in rendered(overlay):
        if o["kind"] == "Service":
            selector = o["spec"]["selector"]
        elif o["kind"] == "NetworkPolicy":
            selector = o["spec"]["podSelector"]["matchLabels"]
        elif o["kind"] in ("PodDisruptionBudget", "ServiceMonitor", "PodMonitoring"):
            selector = o["spec"]["selector"]["matchLabels"]
        else:
            continue
        assert any(selector.items() <= one_pods.items() for one_pods in labels), o["metadata"]["name"]


def test_only_the_gpu_overlays_ask_for_a_gpu() -> None:
    """With the settings that use it."""
    for overlay in OVERLAYS:
        triton = triton_pod(overlay)["containers"][0]
        asks = "nvidia.com/gpu" in triton["resources"]["limits"]
        assert asks == ("--model-config-name=gpu-trt" in triton["command"]) == (overlay != "cpu")


def test_kserves_alternative_serves_the_same_models_with_the_same_release() -> None:
    """Its kind is an operator's; what it shares with the base is held together here."""
    triton = triton_pod("gpu")["containers"][0]
    # Where the repository lies and which ports are open are KServe's own.
    own = ("tritonserver", "--model-repository")
    assert sorted(kserve()["args"]) == sorted(word for word in triton["command"] if not word.startswith(own))
    assert triton["image"].endswith(kserve()["runtimeVersion"])
