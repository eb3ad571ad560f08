"""Check a model configuration against the settings that our backends support."""

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fruitstand.errors import ServerError
from fruitstand.repository.backend_settings import NO_EFFECT, REFUSED, SETTINGS
from fruitstand.repository.triton_keys import (
    DALI_PARAMETERS,
    DEPRECATED_CUDA_PARAMETERS,
    HOST_INFER_PARAMETERS,
    HOST_PARAMETERS,
    ONNXRUNTIME_PARAMETERS,
)

log = logging.getLogger("fruitstand.backend")

_PARAMETERS = {
    "dali": {**DALI_PARAMETERS, **HOST_PARAMETERS},
    "onnxruntime": {**ONNXRUNTIME_PARAMETERS, **HOST_PARAMETERS, **HOST_INFER_PARAMETERS},
}
_UNSET = (None, "", 0, "0", False, [], {}, "FORMAT_NONE", "PRIORITY_DEFAULT")


def checked_parameters(config: dict[str, Any], backend: str, *, on_gpu: bool) -> dict[str, str]:
    """Check all settings of a model and return its parameters.

    Args:
        config: the model's configuration, as Triton passes it to a backend.
        backend: "onnxruntime" or "dali".
        on_gpu: whether the instance is KIND_GPU.

    Returns:
        `parameters` as text by key, without those that have no effect.

    Raises:
        ServerError: an unknown key or value, or an unsupported setting that would change answers.
    """
    name = config["name"]
    parameters = {key: entry["string_value"] for key, entry in config.get("parameters", {}).items()}
    for key in parameters:
        refused = _setting(backend, f"parameters.{key}")
        if refused is not None and refused.verdict == REFUSED:
            raise ServerError(
                f"{name}: parameter {key} is not supported in the embedded server: {refused.why}"
            )
    checked_map(name, parameters, _PARAMETERS[backend])
    for setting in SETTINGS:
        if not setting.applies_to(backend):
            continue
        if not any(_differs(setting.path, value) for value in _values(config, setting.path.split("."))):
            continue
        if setting.verdict == REFUSED:
            raise ServerError(
                f"{name}: {setting.path} is not supported in the embedded server: {setting.why}"
            )
        if setting.verdict == NO_EFFECT:
            log.warning("%s: %s has no effect in the embedded server: %s", name, setting.path, setting.why)
    if not on_gpu:
        for key in sorted(set(parameters) & set(DEPRECATED_CUDA_PARAMETERS)):
            log.warning("%s: parameter %s has no effect without a GPU instance", name, key)
            del parameters[key]
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


def _setting(backend: str, path: str) -> Any:
    return next((one for one in SETTINGS if one.applies_to(backend) and one.path == path), None)


def _differs(path: str, value: Any) -> bool:
    """Whether a value differs from the default: pinned memory on, everything else off or absent."""
    if "pinned_memory" in path:
        return value is False
    if path == "max_batch_size":
        return int(value) == 0
    return value not in _UNSET


def _values(node: Any, path: list[str]) -> Iterator[Any]:
    """The values at a path; a list on the path yields every element."""
    if isinstance(node, list):
        for element in node:
            yield from _values(element, path)
    elif not path:
        yield node
    elif isinstance(node, Mapping) and path[0] in node:
        child = node[path[0]]
        if len(path) == 1:
            yield child
        else:
            yield from _values(child, path[1:])
