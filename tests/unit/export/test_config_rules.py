from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from export.publish.render import INT8_MODEL
from fruitstand.contract import FRUIT_CLASSIFIER, FRUIT_RESNET, IMAGE_DECODE
from fruitstand.images.synthetic import encode, pattern
from tests.repositories import (
    DECODE,
    DECODE_SETS,
    ENSEMBLE,
    EVERYWHERE,
    RESNET,
    RESNET_SETS,
    VERSION,
    WARMUP_IMAGE,
    Plant,
    broken_by,
    edit,
    planted_rules,
    put,
    remove,
    rule_names,
)

WITHOUT_ENSEMBLE = remove(FRUIT_CLASSIFIER)


def warmup(config: pb.ModelConfig) -> pb.ModelWarmup.Input:
    """The tensor of the first warm-up sample."""
    return config.model_warmup[0].inputs[config.input[0].name]


def as_string(config: pb.ModelConfig) -> None:
    """Take encoded images as STRING, warm-up included."""
    config.input[0].data_type = warmup(config).data_type = pb.TYPE_STRING
    config.input[0].allow_ragged_batch = False
    del config.model_warmup[1:]


@pytest.mark.parametrize(
    ("rule", "plants"),
    [
        pytest.param("model_name", [edit(RESNET, lambda c: setattr(c, "name", "resnet"))], id="model_name"),
        pytest.param("backend", [edit(RESNET, lambda c: setattr(c, "backend", "tensorrt"))], id="backend"),
        pytest.param("backend", [edit(ENSEMBLE, lambda c: c.ClearField("platform"))], id="no_platform"),
        pytest.param(
            "tensor",
            [WITHOUT_ENSEMBLE, edit(DECODE, lambda c: c.ClearField("output"))],
            id="no_output",
        ),
        pytest.param(
            "tensor",
            [WITHOUT_ENSEMBLE, edit(DECODE, lambda c: c.output[0].ClearField("data_type"))],
            id="no_data_type",
        ),
        pytest.param(
            "tensor",
            [WITHOUT_ENSEMBLE, edit(DECODE, lambda c: setattr(c.output[0], "data_type", 99))],
            id="no_such_data_type",
        ),
        pytest.param(
            "dims",
            [WITHOUT_ENSEMBLE, edit(DECODE, lambda c: c.output[0].dims.insert(0, -1))],
            id="batch_axis_in_dims",
        ),
        pytest.param(
            "ragged_batch",
            [edit(DECODE, lambda c: c.input[0].ClearField("allow_ragged_batch"))],
            id="decode_not_ragged",
        ),
        pytest.param(
            "ragged_batch",
            [edit(ENSEMBLE, lambda c: c.input[0].ClearField("allow_ragged_batch"))],
            id="ensemble_not_ragged",
        ),
        pytest.param(
            "ragged_batch",
            [edit(RESNET, lambda c: setattr(c.input[0], "allow_ragged_batch", True))],
            id="pixels_ragged",
        ),
        pytest.param("dali_input", [WITHOUT_ENSEMBLE, edit(DECODE, as_string)], id="dali_string"),
        pytest.param(
            "max_batch_size",
            [
                edit(EVERYWHERE, lambda c: setattr(c, "max_batch_size", 0)),
                edit(RESNET_SETS, lambda c: c.model_warmup.__delitem__(slice(1, None))),
            ],
            id="no_batches",
        ),
        pytest.param(
            "dynamic_batching",
            [edit(RESNET, lambda c: c.ClearField("dynamic_batching"))],
            id="resnet_no_batching",
        ),
        pytest.param(
            "dynamic_batching",
            [edit(DECODE, lambda c: c.ClearField("dynamic_batching"))],
            id="decode_no_batching",
        ),
        pytest.param(
            "preferred_batch_size",
            [edit(RESNET, lambda c: c.dynamic_batching.preferred_batch_size.append(c.max_batch_size + 1))],
            id="preferred_batch_size",
        ),
        pytest.param(
            "instance_group", [edit(DECODE, lambda c: c.ClearField("instance_group"))], id="no_instance_group"
        ),
        pytest.param(
            "instance_group",
            [edit(DECODE, lambda c: c.instance_group[0].ClearField("kind"))],
            id="kind_auto",
        ),
        pytest.param(
            "instance_group",
            [edit(DECODE, lambda c: c.instance_group[0].ClearField("count"))],
            id="no_count",
        ),
        pytest.param(
            "warmup_missing", [edit(DECODE, lambda c: c.ClearField("model_warmup"))], id="decode_no_warmup"
        ),
        pytest.param(
            "warmup_missing", [edit(RESNET, lambda c: c.ClearField("model_warmup"))], id="resnet_no_warmup"
        ),
        pytest.param(
            "warmup_batch",
            [edit(RESNET, lambda c: setattr(c.model_warmup[0], "batch_size", c.max_batch_size + 1))],
            id="warmup_batch_too_large",
        ),
        pytest.param(
            "warmup_batch",
            [edit(DECODE, lambda c: c.model_warmup[0].ClearField("batch_size"))],
            id="warmup_no_batch",
        ),
        pytest.param(
            "warmup_input", [edit(RESNET, lambda c: c.model_warmup[0].inputs.clear())], id="warmup_no_input"
        ),
        pytest.param(
            "warmup_tensor",
            [edit(RESNET, lambda c: warmup(c).dims.insert(0, 8))],
            id="warmup_dims_with_batch",
        ),
        pytest.param(
            "warmup_tensor",
            [edit(RESNET, lambda c: setattr(warmup(c), "data_type", pb.TYPE_FP32))],
            id="warmup_data_type",
        ),
        pytest.param(
            "warmup_tensor",
            [edit(DECODE, lambda c: warmup(c).dims.__setitem__(0, -1))],
            id="warmup_length_open",
        ),
        pytest.param(
            "warmup_data", [edit(DECODE, lambda c: setattr(warmup(c), "zero_data", True))], id="decode_zeros"
        ),
        pytest.param(
            "warmup_data",
            [edit(DECODE, lambda c: setattr(warmup(c), "random_data", True))],
            id="decode_noise",
        ),
        pytest.param(
            "warmup_data", [edit(RESNET, lambda c: warmup(c).ClearField("zero_data"))], id="warmup_no_data"
        ),
        pytest.param("warmup_file", [remove(WARMUP_IMAGE)], id="warmup_file_missing"),
        pytest.param(
            "warmup_file",
            [
                put(WARMUP_IMAGE, b"no image"),
                edit(DECODE_SETS, lambda c: warmup(c).dims.__setitem__(0, 8)),
            ],
            id="warmup_file_no_image",
        ),
        pytest.param("warmup_length", [put(WARMUP_IMAGE, encode(pattern(10, 10)))], id="warmup_other_image"),
        pytest.param(
            "warmup_length",
            [edit(DECODE, lambda c: warmup(c).dims.__setitem__(0, warmup(c).dims[0] - 1))],
            id="warmup_one_byte_short",
        ),
        pytest.param("version_directory", [remove(f"{FRUIT_RESNET}/{VERSION}")], id="no_version"),
        pytest.param(
            "version_directory",
            [
                edit(DECODE, lambda c: c.ClearField("version_policy")),
                remove(f"{IMAGE_DECODE}/1"),
            ],
            id="no_version_at_all",
        ),
        pytest.param("model_file", [remove(f"{FRUIT_RESNET}/{VERSION}/{INT8_MODEL}")], id="no_model_file"),
        pytest.param("model_file", [remove(f"{IMAGE_DECODE}/1/dali.py")], id="no_pipeline"),
        pytest.param("label_filename", [remove(f"{FRUIT_RESNET}/labels.txt")], id="no_labels"),
        pytest.param(
            "label_filename", [put(f"{FRUIT_RESNET}/labels.txt", b"Kiwi\nPlum\n")], id="other_labels"
        ),
        pytest.param(
            "ensemble_setting",
            [edit(ENSEMBLE, lambda c: c.instance_group.add(count=1))],
            id="ensemble_instance_group",
        ),
    ],
)
def test_each_fault_is_found_and_nothing_else(tmp_path: Path, rule: str, plants: list[Plant]) -> None:
    """In a model by itself: tensors, batching, warm-up, files."""
    assert broken_by(tmp_path, plants) == {rule}


def test_every_rule_has_a_case() -> None:
    """A rule nobody tested is a rule nobody can trust."""
    assert planted_rules(test_each_fault_is_found_and_nothing_else) == rule_names("config_rules")
