"""What one model's configuration can get wrong, rule by rule; `export.lint.config_lint` gathers them.

Source:
    triton-inference-server/server `docs/user_guide/model_configuration.md`, dali_backend README, as of 24.10.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from tritonclient.grpc import model_config_pb2 as pb

from export.lint.backend_rules import Fault, key_faults, optimization_faults
from fruitstand.contract import HOST_CONFIG, Preprocessing
from fruitstand.errors import ArtefactError, ImageRejected
from fruitstand.images.header import read_header
from fruitstand.labels import read_labels
from fruitstand.repository.triton_keys import (
    DALI_PARAMETERS,
    HOST_INFER_PARAMETERS,
    HOST_PARAMETERS,
    ONNXRUNTIME_PARAMETERS,
)
from fruitstand.repository.versions import version_numbers

_HOST_PARAMETERS = {"dali": HOST_PARAMETERS, "onnxruntime": {**HOST_PARAMETERS, **HOST_INFER_PARAMETERS}}
_PARAMETERS = {"dali": DALI_PARAMETERS, "onnxruntime": ONNXRUNTIME_PARAMETERS, "python": {}}
_MODEL_FILES = {"dali": ("model.dali", "dali.py"), "onnxruntime": ("model.onnx",), "python": ("model.py",)}
_ENSEMBLE_IGNORES = ("instance_group", "model_warmup", "default_model_filename")
_ITEM_BYTES = {
    **dict.fromkeys((pb.TYPE_BOOL, pb.TYPE_UINT8, pb.TYPE_INT8), 1),
    **dict.fromkeys((pb.TYPE_UINT16, pb.TYPE_INT16, pb.TYPE_FP16, pb.TYPE_BF16), 2),
    **dict.fromkeys((pb.TYPE_UINT32, pb.TYPE_INT32, pb.TYPE_FP32), 4),
    **dict.fromkeys((pb.TYPE_UINT64, pb.TYPE_INT64, pb.TYPE_FP64), 8),
}
_DATA_TYPES = {*_ITEM_BYTES, pb.TYPE_STRING}


@dataclass(frozen=True, slots=True)
class Model:
    """One model of a repository, with the configuration a config name selects."""

    directory: Path
    """`<repository>/<model>`."""
    file: Path
    """The configuration, relative to the repository."""
    config: pb.ModelConfig

    @property
    def has_own_queue(self) -> bool:
        """Whether the embedded server's own backend reads it, which queues and batches by itself."""
        return self.file.stem == HOST_CONFIG

    @property
    def is_ensemble(self) -> bool:
        """Whether it only joins other models."""
        return self.config.platform == "ensemble" or self.config.HasField("ensemble_scheduling")

    def served_versions(self) -> list[int]:
        """What `version_policy` selects, ascending; a version it names may have no directory."""
        there = version_numbers(self.directory)
        policy = self.config.version_policy
        chosen = policy.WhichOneof("policy_choice")
        if chosen == "specific":
            return sorted(policy.specific.versions)
        return there if chosen == "all" else there[-max(1, policy.latest.num_versions) :]


def describe(tensor: pb.ModelInput | pb.ModelOutput | pb.ModelWarmup.Input) -> str:
    """Type and dims, as `UINT8 [100, 100, 3]`."""
    return f"{_enum_name(pb.DataType, tensor.data_type).removeprefix('TYPE_')} {list(tensor.dims)}"


def _enum_name(enum: EnumTypeWrapper, number: int) -> str:
    # The parser takes any number for an enum's value, but not every number has a name.
    return enum.Name(number) if number in enum.values() else f"unknown ({number})"


def model_faults(model: Model) -> Iterator[Fault]:
    """Every fault that shows without a look at the other models."""
    config = model.config
    if config.name != model.directory.name:
        yield "model_name", f"name is {config.name!r}, expected the directory's, {model.directory.name!r}"
    yield from _tensor_faults(config)
    if config.max_batch_size < 1:
        yield (
            "max_batch_size",
            f"max_batch_size is {config.max_batch_size}: no batch forms; expected 1 or more",
        )
    yield from _file_faults(model)
    if model.is_ensemble:
        if config.platform != "ensemble":
            yield "backend", f"platform is {config.platform!r}, expected 'ensemble' with ensemble_scheduling"
        for field in _ENSEMBLE_IGNORES:
            if getattr(config, field):
                yield "ensemble_setting", f"{field} has no effect on an ensemble; set it on the step"
        return
    if config.backend not in _PARAMETERS:
        yield "backend", f"backend is {config.backend!r}, expected one of {', '.join(_PARAMETERS)}"
        return
    yield from _batching_faults(model)
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    own = _HOST_PARAMETERS.get(config.backend, {}) if model.has_own_queue else {}
    allowed = {**_PARAMETERS[config.backend], **own}
    yield from key_faults(f"{config.backend} parameter", parameters, allowed)
    if config.backend == "onnxruntime":
        yield from optimization_faults(config)
    yield from _warmup_faults(model)


def _tensor_faults(config: pb.ModelConfig) -> Iterator[Fault]:
    if not config.input or not config.output:
        yield "tensor", "input or output is missing and the server completes nothing; write both"
    for tensor in [*config.input, *config.output]:
        if not tensor.name or tensor.data_type not in _DATA_TYPES or not tensor.dims:
            yield "tensor", f"{tensor.name!r} is {describe(tensor)}; expected a name, a data_type and dims"
        elif any(dim < 1 for dim in tensor.dims) and list(tensor.dims) != [-1]:
            yield "dims", f"{tensor.name} is {describe(tensor)}; expected fixed dims without the batch axis"
    for tensor in config.input:
        variable = list(tensor.dims) == [-1]
        if variable and tensor.data_type == pb.TYPE_UINT8 and not tensor.allow_ragged_batch:
            yield (
                "ragged_batch",
                f"{tensor.name} is UINT8 [-1] without allow_ragged_batch: a batch would end at the first"
                " image of another length; set allow_ragged_batch: true",
            )
        if tensor.allow_ragged_batch and not variable:
            yield "ragged_batch", f"{tensor.name} is ragged with dims {list(tensor.dims)}, allowed only [-1]"
        if config.backend == "dali" and tensor.data_type == pb.TYPE_STRING:
            yield (
                "dali_input",
                f"{tensor.name} is STRING, which the dali backend refuses; expected UINT8 [-1]",
            )


def _batching_faults(model: Model) -> Iterator[Fault]:
    config = model.config
    if model.has_own_queue and config.HasField("dynamic_batching"):
        yield (
            "dynamic_batching",
            "dynamic_batching in front of a backend that forms its own batches costs time; remove it",
        )
    if not model.has_own_queue and not config.HasField("dynamic_batching"):
        yield (
            "dynamic_batching",
            "no dynamic_batching: nothing adds it here; write at least dynamic_batching { }",
        )
    too_large = [
        size for size in config.dynamic_batching.preferred_batch_size if size > config.max_batch_size
    ]
    if too_large and config.max_batch_size > 0:
        yield (
            "preferred_batch_size",
            f"preferred_batch_size {too_large[0]}, allowed up to max_batch_size, {config.max_batch_size}",
        )
    kinds = (pb.ModelInstanceGroup.KIND_CPU, pb.ModelInstanceGroup.KIND_GPU)
    if not config.instance_group:
        yield "instance_group", "no instance_group: the default differs by server; write count and kind"
    for group in config.instance_group:
        if group.count < 1 or group.kind not in kinds:
            kind = _enum_name(pb.ModelInstanceGroup.Kind, group.kind)
            yield "instance_group", f"count {group.count}, {kind}; expected a count and KIND_CPU or KIND_GPU"


def _warmup_faults(model: Model) -> Iterator[Fault]:
    config = model.config
    if not config.model_warmup:
        yield "warmup_missing", "no model_warmup: ready would be true before an inference ran; add a sample"
    inputs = {tensor.name: tensor for tensor in config.input}
    for sample in config.model_warmup:
        if not 1 <= sample.batch_size <= max(1, config.max_batch_size):
            yield (
                "warmup_batch",
                f"warm-up {sample.name!r} has batch_size {sample.batch_size}, allowed 1 to max_batch_size,"
                f" {config.max_batch_size}",
            )
        if set(sample.inputs) != set(inputs):
            yield (
                "warmup_input",
                f"warm-up {sample.name!r} fills {sorted(sample.inputs)}, expected all of {sorted(inputs)}",
            )
        for name in sorted(set(sample.inputs) & set(inputs)):
            yield from _warmup_input_faults(model, sample.name, inputs[name], sample.inputs[name])


def _warmup_input_faults(
    model: Model, sample: str, declared: pb.ModelInput, value: pb.ModelWarmup.Input
) -> Iterator[Fault]:
    what = f"warm-up {sample!r} of {declared.name}"
    fits = len(value.dims) == len(declared.dims) and all(
        got > 0 and dim in (-1, got) for got, dim in zip(value.dims, declared.dims, strict=True)
    )
    if value.data_type != declared.data_type or not fits:
        yield "warmup_tensor", f"{what} is {describe(value)}, expected fixed dims of {describe(declared)}"
        return
    kind = value.WhichOneof("input_data_type")
    if kind is None or (kind != "input_data_file" and model.config.backend == "dali"):
        # Zeros and noise are no image: the decode fails, and with it the model's load.
        yield (
            "warmup_data",
            f"{what}: data is {kind}, expected input_data_file"
            + (", an encoded image" if model.config.backend == "dali" else ", zero_data or random_data"),
        )
    if kind != "input_data_file":
        return
    path = model.directory / "warmup" / value.input_data_file
    if not path.is_file():
        yield "warmup_file", f"{what}: no file warmup/{value.input_data_file}; publish the model again"
        return
    size, expected = path.stat().st_size, math.prod(value.dims) * _ITEM_BYTES.get(value.data_type, 0)
    if expected and size != expected:
        yield (
            "warmup_length",
            f"{what}: dims ask for {expected} bytes, {path.name} has {size}; write its length",
        )
    elif model.config.backend == "dali":
        try:
            read_header(path.read_bytes(), Preprocessing())
        except ImageRejected as exc:
            yield "warmup_file", f"{what}: {path.name}: {exc}; expected an encoded image"


def _file_faults(model: Model) -> Iterator[Fault]:
    config, served = model.config, model.served_versions()
    if not served:
        yield "version_directory", "no version directory, so nothing is served; publish a version"
    named = config.default_model_filename
    names = (named,) if named else _MODEL_FILES.get(config.backend, ())
    for version in served:
        directory = model.directory / str(version)
        if not directory.is_dir():
            yield (
                "version_directory",
                f"version_policy asks for {version}, which has no directory; publish it",
            )
        elif not model.is_ensemble and names and not any((directory / name).exists() for name in names):
            yield "model_file", f"version {version} has no {' or '.join(names)}; publish a version that has"
    for tensor in config.output:
        if not tensor.label_filename:
            continue
        path = model.directory / tensor.label_filename
        try:
            count = len(read_labels(path))
        except ArtefactError as exc:
            yield "label_filename", f"{tensor.name}: {str(exc).replace(str(path), path.name)}"
            continue
        if list(tensor.dims) != [count]:
            yield "label_filename", f"{tensor.name} has dims {list(tensor.dims)}, {path.name} {count} labels"
