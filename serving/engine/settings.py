"""Check a model configuration against the settings that our backends support, see `docs/backends.md`."""

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fruitstand.errors import ServerError
from fruitstand.repository.triton_keys import (
    DALI_PARAMETERS,
    HOST_INFER_PARAMETERS,
    HOST_PARAMETERS,
    INTEGER,
)

log = logging.getLogger("fruitstand.backend")

PARAMETERS = {
    "dali": {**DALI_PARAMETERS, **HOST_PARAMETERS},
    "onnxruntime": {"intra_op_thread_count": INTEGER, **HOST_PARAMETERS, **HOST_INFER_PARAMETERS},
}
_REFUSED = {
    "max_batch_size": "requests need a batch axis",
    "sequence_batching": "no state is kept between requests",
    "model_transaction_policy.decoupled": "a request has one answer",
    "input.optional": "every input is fed in every batch",
    "input.is_shape_tensor": "it is of TensorRT's own backend",
    "batch_input": "a batch has no side inputs",
    "batch_output": "a batch has no side outputs",
    "optimization.graph.level": "sessions always optimise fully",
    "model_operations.op_library_filename": "custom operators are not loaded",
}
REFUSED = {"dali": _REFUSED, "onnxruntime": {**_REFUSED, "input.allow_ragged_batch": "a batch is one array"}}
"""Settings that would change answers, by backend: their path in `config.pbtxt`, and why."""
_NO_EFFECT = (
    "input.format",
    "optimization.priority",
    "optimization.cuda.graphs",
    "optimization.input_pinned_memory.enable",
    "optimization.output_pinned_memory.enable",
    "optimization.gather_kernel_buffer_threshold",
    "optimization.eager_batching",
)
NO_EFFECT = {
    "dali": (
        *_NO_EFFECT,
        "optimization.execution_accelerators.cpu_execution_accelerator",
        "optimization.execution_accelerators.gpu_execution_accelerator",
    ),
    "onnxruntime": _NO_EFFECT,
}
"""Settings that change speed only, by backend."""
_UNSET = (None, "", 0, "0", False, [], {}, "FORMAT_NONE", "PRIORITY_DEFAULT")


def checked_parameters(config: dict[str, Any], backend: str) -> dict[str, str]:
    """Check all settings of a model and return its parameters.

    Args:
        config: the model's configuration, as Triton passes it to a backend.
        backend: "onnxruntime" or "dali".

    Returns:
        `parameters` as text by key.

    Raises:
        ServerError: an unknown key or value, or an unsupported setting that would change answers.
    """
    name = config["name"]
    parameters = {key: entry["string_value"] for key, entry in config.get("parameters", {}).items()}
    checked_map(name, parameters, PARAMETERS[backend])
    for path, why in REFUSED[backend].items():
        if _is_set(config, path):
            raise ServerError(f"{name}: {path} is not supported in the embedded server: {why}")
    for path in NO_EFFECT[backend]:
        if _is_set(config, path):
            log.warning("%s: %s has no effect in the embedded server", name, path)
    return parameters


def checked_map(what: str, given: Mapping[str, str], allowed: Mapping[str, str]) -> None:
    """Check keys, and values against the regular expression of their key.

    Raises:
        ServerError: names the key and what is allowed.
    """
    for key, value in given.items():
        if key not in allowed:
            raise ServerError(f"{what}: unknown parameter {key!r}, allowed {', '.join(sorted(allowed))}")
        if not re.fullmatch(allowed[key], value):
            raise ServerError(f"{what}: parameter {key} is {value!r}, allowed {allowed[key]}")


def _is_set(config: dict[str, Any], path: str) -> bool:
    """Whether a value differs from the default: pinned memory on, batches, everything else off or absent."""
    values = _values(config, path.split("."))
    if "pinned_memory" in path:
        return any(value is False for value in values)
    if path == "max_batch_size":
        return any(int(value) == 0 for value in values)
    return any(value not in _UNSET for value in values)


def _values(node: Any, path: list[str]) -> Iterator[Any]:
    """The values at a path; a list on the path yields every element."""
    if not path:
        yield node
    elif isinstance(node, list):
        for element in node:
            yield from _values(element, path)
    elif isinstance(node, Mapping) and path[0] in node:
        yield from _values(node[path[0]], path[1:])
