import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import fruitstand
from export.publish.render import LABELS_FILE, SWITCH, render_repository, write_repository
from fruitstand.contract import FRUIT_CLASSIFIER, FRUIT_RESNET, IMAGE_DECODE, IMAGE_GUARD, Preprocessing
from fruitstand.labels import read_labels
from fruitstand.repository.model_names import names_for
from fruitstand.repository.versions import LOADED_CONFIG, ServingState

COMMITTED = Path(__file__).parents[3] / "model_repository"
LABELS = read_labels(COMMITTED / LABELS_FILE)
CONFIGS = [str(path) for path in render_repository(Preprocessing(), LABELS) if path.suffix == ".pbtxt"]


def test_the_committed_repository_is_what_the_contract_renders() -> None:
    """Neither the files nor the contract can drift from the other."""
    for relative, content in render_repository(Preprocessing(), LABELS).items():
        assert (COMMITTED / relative).read_bytes() == content, f"{relative}: python -m export.publish.render"


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_parses_with_the_official_proto(config: str) -> None:
    """And names none of the fields that Triton 24.10 does not know: with one of them no model would load."""
    rendered = render_repository(Preprocessing(), LABELS)[Path(config)].decode()
    parsed = text_format.Parse(rendered, model_config_pb2.ModelConfig())
    assert parsed.name == Path(config).parts[0]
    assert not any(later in rendered for later in ("model_metrics", "max_inflight_requests"))


def test_the_file_that_switches_is_written_last() -> None:
    """A killed rendering serves the old version; what it already wrote serves both."""
    assert list(render_repository(Preprocessing(), LABELS))[-1] == SWITCH


def test_the_ensemble_and_the_classifier_pin_one_version() -> None:
    """The version in every answer is that of the model that gave it."""
    rendered = render_repository(Preprocessing(), LABELS, state=ServingState(7, 3, (3,)))
    ensemble, resnet = (
        text_format.Parse(rendered[path].decode(), model_config_pb2.ModelConfig())
        for path in (SWITCH, LOADED_CONFIG)
    )
    assert list(ensemble.version_policy.specific.versions) == [7]
    assert ensemble.ensemble_scheduling.step[1].model_version == 7
    assert list(resnet.version_policy.specific.versions) == [3, 7]
    assert Path(FRUIT_CLASSIFIER, "7", "README") in rendered


def test_a_name_changes_folders_and_references_and_nothing_else() -> None:
    """Every file of the default is there, and a configuration names only models of its own repository."""
    default, birds = (
        render_repository(Preprocessing(), LABELS, names=names_for(name)) for name in ("fruit", "birds")
    )
    assert default == render_repository(Preprocessing(), LABELS)
    assert [Path(*path.parts[1:]) for path in birds] == [Path(*path.parts[1:]) for path in default]
    folders = set(names_for("birds").all)
    assert {path.parts[0] for path in birds} == folders
    for path in (path for path in birds if path.suffix == ".pbtxt"):
        config = text_format.Parse(birds[path].decode(), model_config_pb2.ModelConfig())
        assert config.name == path.parts[0]
        assert {step.model_name for step in config.ensemble_scheduling.step} <= folders


@pytest.mark.parametrize("name", ["gpu", "gpu-trt"])
def test_a_gpu_is_warmed_up_to_the_largest_batch(name: str) -> None:
    """Engine, plans and memory for a lone image and for a full batch are there before the model is ready."""
    rendered = render_repository(Preprocessing(), LABELS)[Path(FRUIT_RESNET, "configs", f"{name}.pbtxt")]
    config = text_format.Parse(rendered.decode(), model_config_pb2.ModelConfig())
    sizes = [sample.batch_size for sample in config.model_warmup]
    assert (min(sizes), max(sizes)) == (1, config.max_batch_size)
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    profiles = [one.parameters["trt_profile_opt_shapes"] for one in accelerators if one.name == "tensorrt"]
    assert all(int(profile.split(":")[1].split("x")[0]) in sizes for profile in profiles)


def configurations(tmp_path: Path, name: str) -> dict[str, model_config_pb2.ModelConfig]:
    """The models as a server with this `--model-config-name` reads them; `name` may be empty."""
    write_repository(tmp_path, Preprocessing(), LABELS)
    found = {}
    for folder in (path for path in tmp_path.iterdir() if path.is_dir()):
        chosen = folder / "configs" / f"{name}.pbtxt"
        text = (chosen if chosen.is_file() else folder / "config.pbtxt").read_text()
        found[folder.name] = text_format.Parse(text, model_config_pb2.ModelConfig())
    return found


def in_order(
    models: dict[str, model_config_pb2.ModelConfig], ensemble: str
) -> Iterator[model_config_pb2.ModelConfig]:
    """The models that a request goes through; every step names all tensors of its model."""
    for step in models[ensemble].ensemble_scheduling.step:
        config = models[step.model_name]
        assert set(step.input_map) == {one.name for one in config.input}
        assert set(step.output_map) == {one.name for one in config.output}
        if config.platform == "ensemble":
            yield from in_order(models, step.model_name)
        else:
            yield config


@pytest.mark.parametrize("name", ["", "cpu", "host", "cpu-native", "gpu", "gpu-trt"])
def test_no_configuration_has_a_fault_that_triton_keeps_quiet_about(tmp_path: Path, name: str) -> None:
    """Work would pile up, batches would end after one image, or ready would be true too early."""
    models = configurations(tmp_path, name)
    for config in models.values():
        for tensor in config.input:
            assert tensor.allow_ragged_batch == (list(tensor.dims) == [-1]), f"{config.name} {tensor.name}"
        if config.platform != "ensemble":
            assert config.model_warmup
            assert {group.kind for group in config.instance_group} <= {1, 2}, "KIND_GPU and KIND_CPU"
    is_first = True
    for config in in_order(models, FRUIT_CLASSIFIER):
        if name == "host":
            limit = "max_queue_size" in config.parameters
            assert not config.HasField("dynamic_batching"), "the host batches by itself"
            assert int(config.parameters["default_timeout_microseconds"].string_value) > 0
        else:
            policy = config.dynamic_batching.default_queue_policy
            limit = policy.max_queue_size > 0
            assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT
            assert policy.default_timeout_microseconds > 0
            assert policy.allow_timeout_override
        # In a later step, but for the one behind the guard, a limit can hang Triton's ensembles before 26.02.
        assert limit == is_first
        is_first = config.backend == "python"


def test_tensorrt_builds_one_engine_for_all_batches_and_keeps_none(tmp_path: Path) -> None:
    """A kept engine would answer for the next version; a batch outside of the profile builds it anew."""
    config = configurations(tmp_path, "gpu-trt")[FRUIT_RESNET]
    (one,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert "trt_engine_cache_enable" not in one.parameters
    assert "precision_mode" not in one.parameters, "TensorRT 11 has none"
    bounds = [one.parameters[f"trt_profile_{bound}_shapes"] for bound in ("min", "opt", "max")]
    dims = "x".join(map(str, config.input[0].dims))
    assert bounds == [f"PIXELS:{size}x{dims}" for size in (1, 32, config.max_batch_size)]


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    """A second rendering of the same contract touches nothing."""
    assert write_repository(tmp_path, Preprocessing(), LABELS)
    assert write_repository(tmp_path, Preprocessing(), LABELS) == []
    changed = write_repository(tmp_path, Preprocessing(input_size=(128, 128)), LABELS)
    assert Path(IMAGE_DECODE, "1", "dali.py") in changed
    assert LABELS_FILE not in changed


def test_mean_and_std_live_in_one_place() -> None:
    """Only the contract and the guard's copy of it name them; configs and pipelines never normalise."""
    root = Path(__file__).parents[3]
    places = [
        path
        for folder in (
            "fruitstand",
            "training",
            "export",
            "serving",
            "client",
            "model_repository",
            "benchmarks",
        )
        for path in (root / folder).rglob("*")
        if path.suffix in (".py", ".pbtxt") and "0.485" in path.read_text()
    ]
    copy = root / "model_repository" / IMAGE_GUARD / "1" / "fruitstand" / "contract.py"
    assert places == [root / "fruitstand" / "contract.py", copy]


def test_the_guard_checks_with_the_modules_of_the_embedded_server(tmp_path: Path) -> None:
    """Its own copies suffice: a Python without fruitstand, as in NVIDIA's container, finds all it imports."""
    write_repository(tmp_path, Preprocessing(), LABELS)
    folder = tmp_path / IMAGE_GUARD / "1"
    script = (
        f"import sys; sys.path.append({str(folder)!r})\n"
        "from fruitstand.images.structure import inspect_image\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('fruitstand')))"
    )
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True
    )
    copies = sorted((folder / "fruitstand").rglob("*.py"))
    assert sorted(run.stdout.split()) == list(map(str, copies))
    for copy in copies:
        original = Path(fruitstand.__file__).parent / copy.relative_to(folder / "fruitstand")
        assert copy.read_bytes() == original.read_bytes()
