"""An ONNX file that brings all its weights with it."""

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message

from fruitstand.errors import ArtefactError


def load_onnx(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file, without following references to other files.

    Raises:
        ArtefactError: not an ONNX file, or cut off.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as exc:
        raise ArtefactError(f"{path}: not an ONNX file, or cut off; export again") from exc
    if not model.graph.node:
        raise ArtefactError(f"{path}: not an ONNX file, or cut off; export again")
    return model


def check_self_contained(path: Path) -> None:
    """Refuse a file whose tensors lie in other files: loading it would read what the manifest does not name.

    Raises:
        ArtefactError: it refers to another file, or is no ONNX file.
    """
    for tensor in _tensors(load_onnx(path)):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            raise ArtefactError(
                f"{path}: tensor {tensor.name!r} lies in another file, {location!r}; a served model holds"
                " all its weights itself"
            )


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Every tensor anywhere in a model: initializers, attributes, subgraphs, functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        for child in value if descriptor.is_repeated else [value]:
            yield from _tensors(child)
