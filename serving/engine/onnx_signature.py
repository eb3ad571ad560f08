"""Check that a configuration's inputs and outputs match the ONNX file's.

Source:
    triton-inference-server/onnxruntime_backend `src/onnxruntime.cc` (validation), as of 24.10.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fruitstand.errors import ServerError


@dataclass(frozen=True, slots=True)
class TensorType:
    """A type in the numbering of Triton and ONNX, and its names."""

    triton_number: int
    onnx_number: int
    size_bytes: int
    """Size of one element; 0 if it varies."""
    numpy_name: str
    """Empty where NumPy has no such type."""
    onnxruntime_name: str


TYPES = {
    "TYPE_BOOL": TensorType(1, 9, 1, "bool", "tensor(bool)"),
    "TYPE_UINT8": TensorType(2, 2, 1, "uint8", "tensor(uint8)"),
    "TYPE_UINT16": TensorType(3, 4, 2, "uint16", "tensor(uint16)"),
    "TYPE_UINT32": TensorType(4, 12, 4, "uint32", "tensor(uint32)"),
    "TYPE_UINT64": TensorType(5, 13, 8, "uint64", "tensor(uint64)"),
    "TYPE_INT8": TensorType(6, 3, 1, "int8", "tensor(int8)"),
    "TYPE_INT16": TensorType(7, 5, 2, "int16", "tensor(int16)"),
    "TYPE_INT32": TensorType(8, 6, 4, "int32", "tensor(int32)"),
    "TYPE_INT64": TensorType(9, 7, 8, "int64", "tensor(int64)"),
    "TYPE_FP16": TensorType(10, 10, 2, "float16", "tensor(float16)"),
    "TYPE_FP32": TensorType(11, 1, 4, "float32", "tensor(float)"),
    "TYPE_FP64": TensorType(12, 11, 8, "float64", "tensor(double)"),
    "TYPE_STRING": TensorType(13, 8, 0, "object", "tensor(string)"),
    "TYPE_BF16": TensorType(14, 16, 2, "", "tensor(bfloat16)"),
}
"""Tensor types by their names in a model configuration."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of the ONNX file."""

    name: str
    data_type: str
    """Triton's name, such as TYPE_UINT8."""
    dims: list[int]
    """With the batch axis; -1 for symbolic dimensions."""


def tensors_of(arguments: Iterable[Any]) -> list[Tensor]:
    """The inputs or outputs of an opened file, as `InferenceSession` returns them.

    Raises:
        ServerError: one of them has a type that Triton does not know.
    """
    names = {one.onnxruntime_name: name for name, one in TYPES.items()}
    for one in arguments:
        if one.type not in names:
            raise ServerError(f"{one.name}: Triton has no type for {one.type}")
    return [
        Tensor(one.name, names[one.type], [n if isinstance(n, int) and n >= 0 else -1 for n in one.shape])
        for one in arguments
    ]


def check_signature(config: dict[str, Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Check a configuration against the file's tensors, as the native backend does before it loads a model.

    Raises:
        ServerError: number, name, type or dims differ, or the file has no batch axis.
    """
    name = config["name"]
    for kind, tensors in (("input", inputs), ("output", outputs)):
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
                    f" {found.data_type} {found.dims[1:]} after the batch axis in the file"
                )
