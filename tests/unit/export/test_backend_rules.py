from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from tests.repositories import (
    DECODE,
    RESNET,
    RESNET_GPU,
    RESNET_TENSORRT,
    Change,
    Plant,
    broken_by,
    edit,
    planted_rules,
    rule_names,
)


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


@pytest.mark.parametrize(
    ("rule", "plants"),
    [
        pytest.param("dali_parameter", [edit(DECODE, parameter("threads", "2"))], id="dali_unknown"),
        pytest.param("dali_parameter", [edit(DECODE, parameter("num_threads", "two"))], id="dali_value"),
        pytest.param(
            "onnxruntime_parameter",
            [edit(RESNET, parameter("intra_op_threads", "2"))],
            id="onnxruntime_unknown",
        ),
        pytest.param(
            "onnxruntime_parameter", [edit(RESNET, parameter("execution_mode", "2"))], id="execution_mode"
        ),
        pytest.param(
            "graph_level",
            [edit(RESNET, lambda c: setattr(c.optimization.graph, "level", 3))],
            id="graph_level",
        ),
        pytest.param(
            "accelerator",
            [edit(RESNET, lambda c: setattr(accelerator(c, "cpu"), "name", "tvm"))],
            id="cpu_accelerator",
        ),
        pytest.param(
            "accelerator",
            [edit(RESNET_GPU, lambda c: setattr(accelerator(c), "name", "openvino"))],
            id="gpu_accelerator",
        ),
        pytest.param(
            "accelerator",
            [edit(RESNET, lambda c: setattr(accelerator(c), "name", "cuda"))],
            id="gpu_accelerator_on_cpu",
        ),
        pytest.param(
            "openvino_parameter",
            [edit(RESNET, lambda c: accelerator(c, "cpu").parameters.update(num_streams="2"))],
            id="openvino_parameter",
        ),
        pytest.param(
            "cuda_parameter",
            [edit(RESNET_GPU, lambda c: accelerator(c).parameters.update(cudnn_conv_algo_search="1"))],
            id="cuda_value",
        ),
        pytest.param(
            "cuda_parameter",
            [edit(RESNET_GPU, lambda c: accelerator(c).parameters.update(gpu_memory="1"))],
            id="cuda_unknown",
        ),
        pytest.param(
            "cuda_overwritten",
            [edit(RESNET_GPU, parameter("intra_op_thread_count", "2"))],
            id="any_parameter_beside_cuda",
        ),
        pytest.param("tensorrt_parameter", [tensorrt(trt_fp16_enable="1")], id="tensorrt_unknown"),
        pytest.param("tensorrt_removed", [tensorrt(precision_mode="FP16")], id="precision_mode"),
        pytest.param(
            "tensorrt_removed", [tensorrt(int8_calibration_table_name="table")], id="calibration_table"
        ),
        pytest.param("tensorrt_parameter", [tensorrt(trt_engine_cache_enable="yes")], id="tensorrt_value"),
        pytest.param(
            "tensorrt_engine_cache", [tensorrt(trt_engine_cache_enable="1")], id="tensorrt_engine_cache"
        ),
        pytest.param(
            "tensorrt_profile", [tensorrt(trt_profile_max_shapes="PIXELS:64x3x100x100")], id="profile_dims"
        ),
        pytest.param(
            "tensorrt_profile", [tensorrt(trt_profile_max_shapes="PIXELS:32x100x100x3")], id="profile_batch"
        ),
        pytest.param(
            "tensorrt_profile", [tensorrt(trt_profile_min_shapes="pixels:1x100x100x3")], id="profile_input"
        ),
        pytest.param("tensorrt_profile", [tensorrt(trt_profile_opt_shapes="PIXELS")], id="profile_torn"),
        pytest.param(
            "tensorrt_profile",
            [edit(RESNET_TENSORRT, lambda c: accelerator(c).parameters.pop("trt_profile_opt_shapes"))],
            id="profile_missing",
        ),
    ],
)
def test_each_fault_is_found_and_nothing_else(tmp_path: Path, rule: str, plants: list[Plant]) -> None:
    """Unknown keys and values, accelerators that are ignored, profiles that do not fit."""
    assert broken_by(tmp_path, plants) == {rule}


def test_every_rule_has_a_case() -> None:
    """A rule nobody tested is a rule nobody can trust."""
    assert planted_rules(test_each_fault_is_found_and_nothing_else) == rule_names("backend_rules") | {
        "dali_parameter",
        "onnxruntime_parameter",
        "tensorrt_parameter",
        "cuda_parameter",
    }
