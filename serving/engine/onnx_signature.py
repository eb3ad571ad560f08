"""Do a configuration's inputs and outputs agree with the ONNX file's? And: fill in what is missing.

Source:
    triton-inference-server/onnxruntime_backend `src/onnxruntime.cc` (validation, autofill), as of 24.10.
"""

import logging
from dataclasses import dataclass
from typing import Any, Protocol

from fruitstand.errors import ServerError

log = logging.getLogger("fruitstand.backend")

DEFAULT_MAX_BATCH_SIZE = 4
"""The native backend's, for a batching model without `max_batch_size`."""

_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
    "tensor(bfloat16)": "TYPE_BF16",
}


class _Session(Protocol):
    def get_inputs(self) -> list[Any]: ...

    def get_outputs(self) -> list[Any]: ...


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of the ONNX file."""

    name: str
    data_type: str
    """Triton's name, as TYPE_UINT8."""
    dims: list[int]
    """With the batch axis; -1 where symbolic."""


def signature(session: _Session) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs of an opened file.

    Raises:
        ServerError: one of them is no tensor of a type that Triton knows.
    """
    return [_tensor(one) for one in session.get_inputs()], [_tensor(one) for one in session.get_outputs()]


def _tensor(argument: Any) -> Tensor:
    if argument.type not in _TYPES:
        raise ServerError(f"{argument.name}: Triton has no type for {argument.type}")
    dims = [dim if isinstance(dim, int) and dim >= 0 else -1 for dim in argument.shape]
    return Tensor(argument.name, _TYPES[argument.type], dims)


def check_signature(config: dict[str, Any], session: _Session) -> None:
    """Hold a configuration against the file, as the native backend does before it loads a model.

    Raises:
        ServerError: number, name, type or dims differ, or the file has no batch axis.
    """
    name = config["name"]
    for kind, tensors in zip(("input", "output"), signature(session), strict=True):
        there = {tensor.name: tensor for tensor in tensors}
        asked = {tensor["name"]: tensor for tensor in config[kind]}
        unknown = sorted(set(asked) - set(there))
        if unknown:
            raise ServerError(f"{name}: no {kind} {unknown[0]!r} in the file, it has {', '.join(there)}")
        if kind == "input" and len(asked) != len(there):
            raise ServerError(f"{name}: {len(asked)} inputs configured, the file has {', '.join(there)}")
        for tensor_name, wanted in asked.items():
            found = there[tensor_name]
            if not found.dims or found.dims[0] != -1:
                raise ServerError(
                    f"{name}: {tensor_name} is {found.dims} in the file: no batch axis, but max_batch_size"
                    f" is {config['max_batch_size']}; export it with a dynamic first axis"
                )
            dims = [int(dim) for dim in wanted["dims"]]
            fits = len(dims) == len(found.dims) - 1 and all(
                a == b or (kind == "input" and -1 in (a, b))
                for a, b in zip(dims, found.dims[1:], strict=True)
            )
            if wanted["data_type"] != found.data_type or not fits:
                raise ServerError(
                    f"{name}: {tensor_name} is {wanted['data_type']} {dims} in the configuration,"
                    f" {found.data_type} {found.dims[1:]} behind the batch axis in the file"
                )


def complete(config: dict[str, Any], session: _Session) -> tuple[list[Tensor], list[Tensor], int]:
    """What auto-complete adds: inputs and outputs without batch axis, and the largest batch.

    A model batches when the first axis of every tensor is symbolic; one that does and whose configuration
    names no `max_batch_size` gets the native backend's default, 4.
    """
    inputs, outputs = signature(session)
    batches = all(tensor.dims and tensor.dims[0] == -1 for tensor in [*inputs, *outputs])
    max_batch_size = int(config.get("max_batch_size", 0))
    if not batches:
        return inputs, outputs, max_batch_size
    if max_batch_size == 0:
        max_batch_size = DEFAULT_MAX_BATCH_SIZE
        log.warning("%s: max_batch_size was not set, is now %d", config["name"], max_batch_size)
    bare = [
        [Tensor(tensor.name, tensor.data_type, tensor.dims[1:]) for tensor in tensors]
        for tensors in (inputs, outputs)
    ]
    return bare[0], bare[1], max_batch_size
