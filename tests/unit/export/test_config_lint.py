from collections.abc import Callable
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from export.gates.config_lint import lint_repository
from fruitstand.contract import FRUIT_RESNET, IMAGE_DECODE_DALI
from fruitstand.errors import ArtefactError
from tests.repositories import (
    DECODE,
    DECODE_HOST,
    ENSEMBLE,
    RESNET,
    RESNET_GPU,
    RESNET_TENSORRT,
    Change,
    Plant,
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


def accelerator(config: pb.ModelConfig, kind: str = "gpu") -> pb.ModelOptimizationPolicy:
    """The first execution accelerator; made if there is none."""
    accelerators = getattr(config.optimization.execution_accelerators, f"{kind}_execution_accelerator")
    return accelerators[0] if accelerators else accelerators.add()


def parameter(key: str, value: str) -> Change:
    """Set a model parameter."""
    return lambda config: setattr(config.parameters[key], "string_value", value)


def tensorrt(**parameters: str) -> Plant:
    """Set parameters of the TensorRT accelerator."""
    return edit(RESNET_TENSORRT, lambda config: accelerator(config).parameters.update(parameters))


def test_a_clean_repository_gives_no_findings(tmp_path: Path) -> None:
    """In none of the sets of configurations."""
    assert lint_repository(clean_repository(tmp_path)) == []


@pytest.mark.parametrize(
    ("rule", "plant"),
    [
        pytest.param("unreadable", put(DECODE, b'name: "x" input ['), id="torn"),
        pytest.param("unreadable", put(DECODE, b"\xff\xfe\x00"), id="not_text"),
        pytest.param("unreadable", put(RESNET_GPU, b"max_batchsize: 3"), id="no_such_field"),
        pytest.param("unreadable", remove(DECODE), id="no_config"),
        pytest.param(
            "queue_policy",
            edit(DECODE, lambda c: c.dynamic_batching.ClearField("default_queue_policy")),
            id="no_queue_policy",
        ),
        pytest.param(
            "queue_policy",
            edit(f"{IMAGE_DECODE_DALI}/**/*.pbtxt", lambda c: policy(c).ClearField("max_queue_size")),
            id="no_queue_limit_behind_the_guard",
        ),
        pytest.param(
            "queue_policy",
            edit(DECODE, lambda c: policy(c).ClearField("default_timeout_microseconds")),
            id="no_queue_timeout",
        ),
        pytest.param(
            "queue_policy",
            edit(DECODE, lambda c: policy(c).ClearField("allow_timeout_override")),
            id="no_timeout_override",
        ),
        pytest.param(
            "queue_policy",
            edit(DECODE, lambda c: policy(c).ClearField("max_queue_size")),
            id="no_queue_limit",
        ),
        pytest.param(
            "queue_policy",
            edit(DECODE, lambda c: setattr(policy(c), "timeout_action", pb.ModelQueuePolicy.DELAY)),
            id="timeout_delays",
        ),
        pytest.param(
            "queue_policy",
            edit(RESNET, lambda c: c.dynamic_batching.ClearField("default_queue_policy")),
            id="no_queue_policy_on_a_later_step",
        ),
        pytest.param(
            "queue_policy",
            edit(DECODE_HOST, lambda c: c.parameters.pop("max_queue_size")),
            id="no_queue_limit_on_the_host",
        ),
        pytest.param(
            "later_queue_limit",
            edit(RESNET, lambda c: setattr(policy(c), "max_queue_size", 64)),
            id="limit_on_a_later_step",
        ),
        pytest.param(
            "ensemble_map",
            step(0, lambda s: (s.input_map.clear(), s.input_map.update(JPEG="IMAGE"))),
            id="input_map",
        ),
        pytest.param(
            "ensemble_map",
            step(1, lambda s: (s.output_map.clear(), s.output_map.update(logits="PROBABILITIES"))),
            id="output_map",
        ),
        pytest.param(
            "ragged_batch",
            edit(DECODE, lambda c: c.input[0].ClearField("allow_ragged_batch")),
            id="decode_not_ragged",
        ),
        pytest.param(
            "ragged_batch",
            edit(ENSEMBLE, lambda c: c.input[0].ClearField("allow_ragged_batch")),
            id="ensemble_not_ragged",
        ),
        pytest.param(
            "max_batch_size", edit("**/*.pbtxt", lambda c: setattr(c, "max_batch_size", 0)), id="no_batches"
        ),
        pytest.param(
            "dynamic_batching", edit(RESNET, lambda c: c.ClearField("dynamic_batching")), id="no_batching"
        ),
        pytest.param(
            "dynamic_batching",
            edit(DECODE_HOST, lambda c: c.dynamic_batching.SetInParent()),
            id="batching_before_the_host",
        ),
        pytest.param(
            "instance_group", edit(DECODE, lambda c: c.ClearField("instance_group")), id="no_instance_group"
        ),
        pytest.param(
            "instance_group", edit(DECODE, lambda c: c.instance_group[0].ClearField("kind")), id="kind_auto"
        ),
        pytest.param("warmup_missing", edit(DECODE, lambda c: c.ClearField("model_warmup")), id="no_warmup"),
        pytest.param("label_filename", remove(f"{FRUIT_RESNET}/labels.txt"), id="no_labels"),
        pytest.param("label_filename", put(f"{FRUIT_RESNET}/labels.txt", b"Kiwi\nPlum\n"), id="other_labels"),
        pytest.param("parameter", edit(RESNET, parameter("intra_op_threads", "2")), id="parameter_unknown"),
        pytest.param("parameter", edit(RESNET, parameter("execution_mode", "2")), id="parameter_value"),
        pytest.param(
            "graph_level",
            edit(RESNET, lambda c: setattr(c.optimization.graph, "level", 3)),
            id="graph_level",
        ),
        pytest.param(
            "accelerator",
            edit(RESNET, lambda c: setattr(accelerator(c), "name", "cuda")),
            id="gpu_accelerator_on_cpu",
        ),
        pytest.param(
            "openvino_parameter",
            edit(RESNET, lambda c: accelerator(c, "cpu").parameters.update(num_streams="2")),
            id="openvino_parameter",
        ),
        pytest.param(
            "cuda_overwritten",
            edit(RESNET_GPU, parameter("intra_op_thread_count", "2")),
            id="any_parameter_beside_cuda",
        ),
        pytest.param("tensorrt_removed", tensorrt(precision_mode="FP16"), id="precision_mode"),
        pytest.param(
            "tensorrt_engine_cache", tensorrt(trt_engine_cache_enable="1"), id="tensorrt_engine_cache"
        ),
        pytest.param(
            "tensorrt_profile", tensorrt(trt_profile_max_shapes="PIXELS:64x3x100x100"), id="profile_dims"
        ),
        pytest.param(
            "tensorrt_profile", tensorrt(trt_profile_max_shapes="PIXELS:32x100x100x3"), id="profile_batch"
        ),
        pytest.param(
            "tensorrt_profile", tensorrt(trt_profile_min_shapes="pixels:1x100x100x3"), id="profile_input"
        ),
        pytest.param("tensorrt_profile", tensorrt(trt_profile_opt_shapes="PIXELS"), id="profile_torn"),
        pytest.param(
            "tensorrt_profile",
            edit(RESNET_TENSORRT, lambda c: accelerator(c).parameters.pop("trt_profile_opt_shapes")),
            id="profile_missing",
        ),
    ],
)
def test_each_fault_is_found_and_nothing_else(tmp_path: Path, rule: str, plant: Plant) -> None:
    """One fault, one rule: a report that names five rules for one slip is not read."""
    repository = clean_repository(tmp_path)
    plant(repository)
    assert broken_rules(repository) == {rule}


def test_every_rule_has_a_case() -> None:
    """A rule nobody tested is a rule nobody can trust."""
    assert planted_rules(test_each_fault_is_found_and_nothing_else) == rule_names()


def test_a_fault_is_reported_once_though_several_sets_share_the_file(tmp_path: Path) -> None:
    """The ensemble has only config.pbtxt, and is in every set; a named file is in its own."""
    repository = clean_repository(tmp_path)
    edit(RESNET_GPU, lambda config: config.ClearField("dynamic_batching"))(repository)
    edit(ENSEMBLE, lambda config: setattr(config, "max_batch_size", 0))(repository)
    assert [finding.file for finding in lint_repository(repository)] == [Path(ENSEMBLE), Path(RESNET_GPU)]


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    """There is nothing to check in it."""
    with pytest.raises(ArtefactError, match="no model in it"):
        lint_repository(tmp_path / "nowhere")
