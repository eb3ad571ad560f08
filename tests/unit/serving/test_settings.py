import logging
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2 as pb

from fruitstand.errors import ServerError
from fruitstand.repository.backend_settings import (
    BOTH,
    NO_EFFECT,
    REFUSED,
    SETTINGS,
    Setting,
    table,
)
from fruitstand.repository.triton_keys import (
    DALI_PARAMETERS,
    HOST_INFER_PARAMETERS,
    HOST_PARAMETERS,
    ONNXRUNTIME_PARAMETERS,
)
from serving.engine.settings import checked_parameters

MODELS = {"onnxruntime": "fruit_resnet", "dali": "image_decode"}
CASES = [
    pytest.param(setting, backend, id=f"{backend}:{setting.path}")
    for setting in SETTINGS
    for backend in (MODELS if setting.backend == BOTH else [setting.backend])
    if not setting.path.startswith("--")
]
EXAMPLES = {"memory.enable_memory_arena_shrinkage": "cpu:0"}
MESSAGES = {
    "optimization.execution_accelerators.cpu_execution_accelerator": [{"name": "openvino"}],
    "optimization.execution_accelerators.gpu_execution_accelerator": [{"name": "cuda"}],
    "model_operations.op_library_filename": ["ops.so"],
    "sequence_batching": {"oldest": {"max_candidate_sequences": 1}},
    "batch_input": [{"kind": "BATCH_ELEMENT_COUNT"}],
    "batch_output": [{"target_name": ["x"]}],
}
"""Values that are messages."""


def config_with(setting: Setting, backend: str) -> dict[str, Any]:
    """The rendered configuration as Triton hands it to a backend, with one setting more."""
    text = Path("model_repository", MODELS[backend], "config.pbtxt").read_text()
    config = json_format.MessageToDict(
        text_format.Parse(text, pb.ModelConfig()),
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    root, _, rest = setting.path.partition(".")
    if root == "parameters":
        config["parameters"][rest] = {"string_value": setting.example}
        return config
    node, keys = config, setting.path.split(".")
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        node = node[0] if isinstance(node, list) else node
    value = MESSAGES.get(setting.path, {"true": True, "false": False}.get(setting.example, setting.example))
    node[keys[-1]] = value
    if setting.path == "sequence_batching":
        del config["dynamic_batching"]  # one of the two
    # What this makes has to be a configuration that Triton's own schema takes.
    json_format.ParseDict(config, pb.ModelConfig())
    return config


@pytest.mark.parametrize(("setting", "backend"), CASES)
def test_every_line_of_the_table_holds(
    setting: Setting, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Ignored with a warning, or refused with its reason."""
    config = config_with(setting, backend)
    with caplog.at_level(logging.WARNING, logger="fruitstand.backend"):
        if setting.verdict == REFUSED:
            with pytest.raises(ServerError, match=setting.path.rpartition(".")[2]):
                checked_parameters(config, backend, on_gpu=True)
            return
        checked_parameters(config, backend, on_gpu=True)
    assert setting.verdict == NO_EFFECT
    assert [setting.path in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("backend", "path", "example"),
    [
        *(("onnxruntime", f"parameters.{key}", EXAMPLES.get(key, "1")) for key in ONNXRUNTIME_PARAMETERS),
        *(("dali", f"parameters.{key}", "3") for key in DALI_PARAMETERS),
        *((backend, f"parameters.{key}", "1") for backend in MODELS for key in HOST_PARAMETERS),
        *(("onnxruntime", f"parameters.{key}", "1") for key in HOST_INFER_PARAMETERS),
        *((backend, "default_model_filename", "other.file") for backend in MODELS),
        ("onnxruntime", "optimization.graph.level", "1"),
        ("onnxruntime", "optimization.execution_accelerators.cpu_execution_accelerator", ""),
        ("onnxruntime", "optimization.execution_accelerators.gpu_execution_accelerator", ""),
        ("onnxruntime", "model_operations.op_library_filename", ""),
        ("dali", "input.allow_ragged_batch", "true"),
    ],
)
def test_what_the_documentation_calls_honoured_is_taken_in_silence(
    backend: str, path: str, example: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Parameters reach the backend as they are given; `docs/backends.md` names all of them."""
    parameters = checked_parameters(
        config_with(Setting(backend, path, "", "", example), backend), backend, on_gpu=True
    )
    assert caplog.text == ""
    kind, _, key = path.partition(".")
    if kind == "parameters":
        assert parameters[key] == example
        assert f"`{key}`" in Path("docs/backends.md").read_text()


def test_gpu_parameters_are_named_on_the_processor(caplog: pytest.LogCaptureFixture) -> None:
    """A setting without effect is a warning."""
    setting = Setting("onnxruntime", "parameters.gpu_mem_limit", "", "")
    parameters = checked_parameters(config_with(setting, "onnxruntime"), "onnxruntime", on_gpu=False)
    assert parameters == {}
    assert "gpu_mem_limit has no effect" in caplog.text


def test_the_rendered_configurations_are_honoured_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing in them is refused or ignored."""
    for backend in MODELS:
        nothing = Setting(backend, "max_batch_size", "", "", "64")
        checked_parameters(config_with(nothing, backend), backend, on_gpu=False)
    assert caplog.text == ""


def test_the_documentation_lists_them() -> None:
    """`docs/backends.md` holds the very table."""
    assert table() in Path("docs/backends.md").read_text()
