import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor
from tritonclient.grpc import model_config_pb2 as pb

from export.lint.config_lint import lint_repository
from fruitstand.contract import FRUIT_RESNET, IMAGE_DECODE, IMAGE_DECODE_DALI
from fruitstand.errors import ArtefactError
from fruitstand.repository.triton_keys import LATER_FIELDS
from tests.repositories import (
    DECODE,
    ENSEMBLE,
    RESNET,
    RESNET_GPU,
    RESNET_SETS,
    VERSION,
    Plant,
    broken_by,
    broken_rules,
    clean_repository,
    edit,
    planted_rules,
    put,
    remove,
    rule_names,
)


def policy(config: pb.ModelConfig) -> pb.ModelQueuePolicy:
    """The default queue policy."""
    return config.dynamic_batching.default_queue_policy


def step(index: int, change: Callable[[pb.ModelEnsembling.Step], object]) -> Plant:
    """Change one step of the ensemble."""
    return edit(ENSEMBLE, lambda config: change(config.ensemble_scheduling.step[index]))


def test_a_clean_repository_gives_no_findings(tmp_path: Path) -> None:
    """Neither all sets together nor any of them alone."""
    repository = clean_repository(tmp_path)
    assert lint_repository(repository) == []
    for name in ("cpu", "cpu-native", "gpu", "gpu-trt"):
        assert lint_repository(repository, config_name=name) == []


@pytest.mark.parametrize(
    ("rule", "plants"),
    [
        pytest.param("unreadable", [put(DECODE, b'name: "x" input [')], id="torn"),
        pytest.param("unreadable", [put(DECODE, b"\xff\xfe\x00")], id="not_text"),
        pytest.param("unreadable", [put(RESNET_GPU, b"max_batchsize: 3")], id="no_such_field"),
        pytest.param("unreadable", [remove(DECODE)], id="no_config"),
        pytest.param("schema", [edit(DECODE, lambda c: c.model_metrics.SetInParent())], id="model_metrics"),
        pytest.param(
            "schema",
            [edit(ENSEMBLE, lambda c: setattr(c.ensemble_scheduling, "max_inflight_requests", 8))],
            id="max_inflight_requests",
        ),
        pytest.param(
            "queue_policy",
            [edit(DECODE, lambda c: c.dynamic_batching.ClearField("default_queue_policy"))],
            id="no_queue_policy",
        ),
        pytest.param(
            "queue_policy",
            [edit(f"{IMAGE_DECODE_DALI}/**/*.pbtxt", lambda c: policy(c).ClearField("max_queue_size"))],
            id="no_queue_limit_behind_the_guard",
        ),
        pytest.param(
            "queue_policy",
            [edit(DECODE, lambda c: policy(c).ClearField("default_timeout_microseconds"))],
            id="no_queue_timeout",
        ),
        pytest.param(
            "queue_policy",
            [edit(DECODE, lambda c: policy(c).ClearField("allow_timeout_override"))],
            id="no_timeout_override",
        ),
        pytest.param(
            "queue_policy",
            [edit(DECODE, lambda c: policy(c).ClearField("max_queue_size"))],
            id="no_queue_limit",
        ),
        pytest.param(
            "queue_policy",
            [edit(DECODE, lambda c: setattr(policy(c), "timeout_action", pb.ModelQueuePolicy.DELAY))],
            id="timeout_delays",
        ),
        pytest.param(
            "queue_policy",
            [edit(RESNET, lambda c: c.dynamic_batching.ClearField("default_queue_policy"))],
            id="no_queue_policy_on_a_later_step",
        ),
        pytest.param(
            "later_queue_limit",
            [edit(RESNET, lambda c: setattr(policy(c), "max_queue_size", 64))],
            id="limit_on_a_later_step",
        ),
        pytest.param(
            "ensemble_step",
            [step(1, lambda s: setattr(s, "model_name", "fruit_resnet50"))],
            id="unknown_step",
        ),
        pytest.param("ensemble_step", [remove(FRUIT_RESNET)], id="step_not_published"),
        pytest.param(
            "ensemble_map",
            [step(0, lambda s: (s.input_map.pop("ENCODED"), s.input_map.update(JPEG="IMAGE")))],
            id="input_map",
        ),
        pytest.param(
            "ensemble_map",
            [step(1, lambda s: (s.output_map.clear(), s.output_map.update(logits="PROBABILITIES")))],
            id="output_map",
        ),
        pytest.param(
            "ensemble_tensor",
            [step(1, lambda s: s.input_map.update(PIXELS="decoded"))],
            id="tensor_from_nowhere",
        ),
        pytest.param(
            "ensemble_tensor",
            [edit(ENSEMBLE, lambda c: setattr(c.output[0], "name", "LOGITS"))],
            id="output_from_nowhere",
        ),
        pytest.param(
            "ensemble_tensor",
            [edit(ENSEMBLE, lambda c: c.input.add(name="HINT", data_type=pb.TYPE_FP32, dims=[1]))],
            id="input_unused",
        ),
        pytest.param(
            "ensemble_tensor",
            [step(1, lambda s: s.output_map.update(PROBABILITIES="pixels"))],
            id="made_twice",
        ),
        pytest.param(
            "tensor_type",
            [edit(DECODE, lambda c: setattr(c.output[0], "data_type", pb.TYPE_FP32))],
            id="type_between_steps",
        ),
        pytest.param(
            "tensor_type",
            [edit(f"{IMAGE_DECODE}/configs/gpu.pbtxt", lambda c: c.output[0].dims.__setitem__(0, 224))],
            id="dims_between_steps",
        ),
        pytest.param(
            "tensor_type",
            [edit(ENSEMBLE, lambda c: c.output[0].dims.__setitem__(0, 85))],
            id="dims_of_the_answer",
        ),
        pytest.param(
            "ensemble_batch_size",
            [edit(ENSEMBLE, lambda c: setattr(c, "max_batch_size", 8))],
            id="ensemble_batch_size",
        ),
        pytest.param("step_version", [step(1, lambda s: setattr(s, "model_version", 7))], id="step_version"),
        pytest.param(
            "step_version", [step(1, lambda s: s.ClearField("model_version"))], id="no_step_version"
        ),
    ],
)
def test_each_fault_is_found_and_nothing_else(tmp_path: Path, rule: str, plants: list[Plant]) -> None:
    """One fault, one rule: a report that names five rules for one slip is not read."""
    assert broken_by(tmp_path, plants) == {rule}


def test_every_rule_has_a_case() -> None:
    """A rule nobody tested is a rule nobody can trust."""
    assert planted_rules(test_each_fault_is_found_and_nothing_else) == rule_names("config_lint")


@pytest.mark.parametrize(
    "policy_text",
    [
        pytest.param("latest { num_versions: 1 }", id="latest"),
        pytest.param("all { }", id="all"),
        pytest.param("", id="default"),
    ],
)
def test_served_versions_follow_the_policy(tmp_path: Path, policy_text: str) -> None:
    """The newest directory is served by every policy that names none, the older one only by `all`."""
    repository = clean_repository(tmp_path)

    def serve(config: pb.ModelConfig) -> None:
        config.ClearField("version_policy")
        text_format.Merge(policy_text, config.version_policy)

    edit(RESNET_SETS, serve)(repository)
    assert lint_repository(repository) == []
    shutil.copytree(repository / FRUIT_RESNET / str(VERSION), repository / FRUIT_RESNET / "10")
    (repository / FRUIT_RESNET / ".tmp-1-ab-11").mkdir()
    assert broken_rules(repository) == (set() if policy_text.startswith("all") else {"step_version"})


def test_a_value_of_zero_is_outside_the_schema_too(tmp_path: Path) -> None:
    """The 24.10 parser stops at the name, whatever the value."""
    repository = clean_repository(tmp_path)
    path = repository / ENSEMBLE
    text = path.read_text().replace(
        "ensemble_scheduling {", "ensemble_scheduling {\n  max_inflight_requests: 0"
    )
    path.write_text(text)
    assert broken_rules(repository) == {"schema"}


def test_a_config_name_selects_its_files_and_falls_back(tmp_path: Path) -> None:
    """The ensemble has only config.pbtxt, and is in every set; a fault elsewhere is not in this one."""
    repository = clean_repository(tmp_path)
    edit(RESNET_GPU, lambda config: config.ClearField("dynamic_batching"))(repository)
    assert broken_rules(repository, config_name="gpu") == {"dynamic_batching"}
    assert broken_rules(repository, config_name="gpu-trt") == set()
    edit(ENSEMBLE, lambda config: setattr(config, "name", "fruits"))(repository)
    assert broken_rules(repository, config_name="gpu-trt") == {"model_name"}
    assert [finding.file for finding in lint_repository(repository)] == [Path(ENSEMBLE), Path(RESNET_GPU)]


def test_what_cannot_be_linted_is_an_error(tmp_path: Path) -> None:
    """An unknown config name would silently select the default, an empty folder nothing."""
    repository = clean_repository(tmp_path)
    with pytest.raises(
        ArtefactError, match=r"no model has configs/tpu\.pbtxt, there are cpu, cpu-native, gpu, gpu-trt"
    ):
        lint_repository(repository, config_name="tpu")
    with pytest.raises(ArtefactError, match="no model in it"):
        lint_repository(tmp_path / "nowhere")


def test_the_embedded_servers_schema_lacks_the_later_fields_and_no_other() -> None:
    """Read from the schema inside its binary, so that a newer tritonclient cannot hide a newer field."""
    wheel = distribution("nvidia-pytriton")
    (program,) = (file for file in wheel.files or [] if file.match("tritonserver/bin/tritonserver"))
    binary = Path(str(wheel.locate_file(program))).read_bytes()

    def is_known(name: str) -> bool:
        # A serialised FieldDescriptorProto starts with its name: tag 1, length, text.
        return b"\x0a" + bytes([len(name)]) + name.encode() in binary

    def fields(message: Descriptor) -> Iterator[tuple[str, str]]:
        for field in message.fields:
            yield message.name, field.name
        for nested in message.nested_types:
            yield from fields(nested)

    messages = [m for m in pb.DESCRIPTOR.message_types_by_name.values() if m.name != "ModelMetrics"]
    unknown = {pair for message in messages for pair in fields(message) if not is_known(pair[1])}
    assert unknown == {(message, name) for message, names in LATER_FIELDS.items() for name in names}
