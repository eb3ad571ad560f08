import logging
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2 as pb

from fruitstand.errors import ServerError
from serving.engine.settings import NO_EFFECT, PARAMETERS, REFUSED, checked_parameters

MODELS = {"onnxruntime": "fruit_resnet", "dali": "image_decode"}
PAGE = Path("docs/backends.md").read_text()
VALUES: dict[str, Any] = {
    "optimization.execution_accelerators.cpu_execution_accelerator": [{"name": "openvino"}],
    "optimization.execution_accelerators.gpu_execution_accelerator": [{"name": "cuda"}],
    "model_operations.op_library_filename": ["ops.so"],
    "sequence_batching": {"oldest": {"max_candidate_sequences": 1}},
    "batch_input": [{"kind": "BATCH_ELEMENT_COUNT"}],
    "batch_output": [{"target_name": ["x"]}],
    "max_batch_size": 0,
    "optimization.graph.level": 1,
    "optimization.priority": "PRIORITY_MAX",
    "optimization.gather_kernel_buffer_threshold": 1,
    "optimization.input_pinned_memory.enable": False,
    "optimization.output_pinned_memory.enable": False,
    "input.format": "FORMAT_NCHW",
}
"""Values other than the default; all others are true."""


def config_with(backend: str, path: str, value: object) -> dict[str, Any]:
    """The rendered configuration as Triton hands it to a backend, with one setting more."""
    text = Path("model_repository", MODELS[backend], "config.pbtxt").read_text()
    config = json_format.MessageToDict(
        text_format.Parse(text, pb.ModelConfig()),
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    node, keys = config, path.split(".", 1 if path.startswith("parameters.") else -1)
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        node = node[0] if isinstance(node, list) else node
    node[keys[-1]] = value
    if path == "sequence_batching":
        del config["dynamic_batching"]  # one of the two
    # What this makes has to be a configuration that Triton's own schema takes.
    json_format.ParseDict(config, pb.ModelConfig())
    return config


@pytest.mark.parametrize(
    ("backend", "path"), [(backend, path) for backend in MODELS for path in REFUSED[backend]]
)
def test_a_setting_that_would_change_answers_is_refused(backend: str, path: str) -> None:
    """With its path and the reason; `docs/backends.md` lists it."""
    with pytest.raises(ServerError, match=f"{path} is not supported.*{REFUSED[backend][path]}"):
        checked_parameters(config_with(backend, path, VALUES.get(path, True)), backend)
    assert f"`{path}`" in PAGE


@pytest.mark.parametrize(
    ("backend", "path"), [(backend, path) for backend in MODELS for path in NO_EFFECT[backend]]
)
def test_a_setting_without_effect_is_a_warning(
    backend: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With its path; `docs/backends.md` lists it."""
    with caplog.at_level(logging.WARNING, logger="fruitstand.backend"):
        checked_parameters(config_with(backend, path, VALUES.get(path, True)), backend)
    assert [path in record.getMessage() for record in caplog.records] == [True]
    assert f"`{path}`" in PAGE


@pytest.mark.parametrize(
    ("backend", "key"), [(backend, key) for backend in MODELS for key in PARAMETERS[backend]]
)
def test_a_parameter_reaches_the_backend_as_it_is_given(
    backend: str, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In silence; `docs/backends.md` names it."""
    config = config_with(backend, f"parameters.{key}", {"string_value": "1"})
    assert checked_parameters(config, backend)[key] == "1"
    assert caplog.text == ""
    assert f"`{key}`" in PAGE


@pytest.mark.parametrize("backend", MODELS)
def test_any_other_parameter_is_refused(backend: str) -> None:
    """Where the native onnxruntime backend ignores it in silence."""
    config = config_with(backend, "parameters.enable_mem_arena", {"string_value": "1"})
    with pytest.raises(ServerError, match="unknown parameter 'enable_mem_arena'"):
        checked_parameters(config, backend)
