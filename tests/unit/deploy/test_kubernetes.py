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
from serving.access import Access
from serving.gateway_config import MAX_CALL_S

ROOT = Path(__file__).parents[3]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
OLDEST_TRITON = (26, 7)
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


def pods(overlay: str) -> list[dict[str, Any]]:
    """The pods' specifications."""
    return [o["spec"]["template"]["spec"] for o in rendered(overlay) if o["kind"] == "Deployment"]


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
def test_tritons_image_is_new_enough(overlay: str) -> None:
    """26.07 is the oldest release that fixes what is known; every image has a tag."""
    images = {
        c["image"] for pod in pods(overlay) for c in [*pod["containers"], *pod.get("initContainers", [])]
    }
    assert all(re.search(r":[\w.-]+$", image) and not image.endswith(":latest") for image in images)
    versions = [re.search(r"tritonserver:(\d+)\.(\d+)", image) for image in images]
    assert [tuple(map(int, v.groups())) >= OLDEST_TRITON for v in versions if v] == [True]


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
    (pod,) = (pod for pod in pods(overlay) if pod["containers"][0]["name"] == "triton")
    triton = pod["containers"][0]
    for probe in ("startupProbe", "readinessProbe"):
        assert triton[probe]["httpGet"]["path"] == "/v2/models/fruit_classifier/ready"
    wait_s = int(triton["lifecycle"]["preStop"]["exec"]["command"][1])
    (exit_s,) = (int(word.split("=")[1]) for word in triton["command"] if "exit-timeout" in word)
    assert pod["terminationGracePeriodSeconds"] > wait_s + exit_s


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
    named = {p["name"] for pod in pods(overlay) for c in pod["containers"] for p in c["ports"]}
    asked = set(re.findall(r"(?:port|targetPort): ([a-z]+)\b", yaml.safe_dump_all(rendered(overlay))))
    assert asked <= named


@every_overlay
def test_scaling_looks_at_what_waits(overlay: str) -> None:
    """Both queries parse and read metrics that a server of ours has shown; none is utilisation."""
    import promql_parser

    recording = (ROOT / "monitoring" / "rules" / "recording.yml").read_text()  # held against a live server
    known = set(re.findall(r"\bnv_\w+", recording))
    for trigger in one(overlay, "ScaledObject", "triton")["spec"]["triggers"]:
        query = trigger["metadata"]["query"]
        promql_parser.parse(query)
        names = set(re.findall(r"nv_\w+", query))
        assert names <= known
        assert "utilization" not in query


@every_overlay
def test_services_and_policies_select_pods_that_exist(overlay: str) -> None:
    """A selector with a spelling mistake selects nothing, in silence."""
    labels = [
        o["spec"]["template"]["metadata"]["labels"] for o in rendered(overlay) if o["kind"] == "Deployment"
    ]
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
        triton = one(overlay, "Deployment", "triton")["spec"]["template"]["spec"]["containers"][0]
        asks = "nvidia.com/gpu" in triton["resources"]["limits"]
        assert asks == ("--model-config-name=gpu" in triton["command"]) == (overlay != "cpu")


def test_kserves_alternative_serves_the_same_models_with_the_same_release() -> None:
    """Its kind is an operator's; what it shares with the base is held together here."""
    (service,) = yaml.safe_load_all((KUBERNETES / "kserve" / "inference-service.yaml").read_text())
    model = service["spec"]["predictor"]["model"]
    triton = one("gpu", "Deployment", "triton")["spec"]["template"]["spec"]["containers"][0]
    loads = [word for word in triton["command"] if word.startswith("--load-model")]
    assert [word for word in model["args"] if word.startswith("--load-model")] == loads
    assert triton["image"].endswith(model["runtimeVersion"])
