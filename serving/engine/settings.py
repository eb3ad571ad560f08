"""Check a model configuration against the settings that our backends support, see `docs/backends.md`."""

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fruitstand.errors import ServerError

log = logging.getLogger("fruitstand.backend")

COUNT, INTEGER = "[1-9][0-9]*", "[0-9]+"
_QUEUE = {
    "max_queue_size": COUNT,
    "default_timeout_microseconds": COUNT,
    "allow_timeout_override": "0|1|true|false",
    "max_queue_delay_microseconds": INTEGER,
}
"""Limits of our C++ backend's queue, in `configs/host.pbtxt`, with the names of Triton's batcher."""
PARAMETERS = {
    "dali": {"num_threads": f"-1|{COUNT}", **_QUEUE},
    "onnxruntime": {
        "intra_op_thread_count": INTEGER,
        "num_workers": INTEGER,  # 0 uses as many as the instance's threads allow
        "threads_per_worker": COUNT,
        "max_part_images": COUNT,
        **_QUEUE,
    },
}
"""Model parameters by backend, with a regular expression for the whole value."""
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
    allowed = PARAMETERS[backend]
    for key, value in parameters.items():
        if key not in allowed:
            raise ServerError(f"{name}: unknown parameter {key!r}, allowed {', '.join(sorted(allowed))}")
        if not re.fullmatch(allowed[key], value):
            raise ServerError(f"{name}: parameter {key} is {value!r}, allowed {allowed[key]}")
    for path, why in REFUSED[backend].items():
        if _is_set(config, path):
            raise ServerError(f"{name}: {path} is not supported in the embedded server: {why}")
    for path in NO_EFFECT[backend]:
        if _is_set(config, path):
            log.warning("%s: %s has no effect in the embedded server", name, path)
    return parameters


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
