"""Find faults in hand-written `config.pbtxt` files that the server does not report clearly.

    findings = lint_repository(Path("model_repository"))

It needs no server. Faults that Triton reports clearly, such as an unknown model, a wrong type or a missing
file, are left to Triton.

Source:
    triton-inference-server/server `docs/user_guide/model_configuration.md`; onnxruntime_backend
    `src/onnxruntime.cc`, as of 24.10: unknown model parameters are ignored silently.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from fruitstand.contract import EXPLAINER_HEAD, HOST_CONFIG
from fruitstand.errors import ArtefactError
from fruitstand.labels import read_labels
from fruitstand.repository.triton_keys import (
    DEPRECATED_CUDA_PARAMETERS,
    GRAPH_LEVELS,
    HOST_INFER_PARAMETERS,
    HOST_PARAMETERS,
    ONNXRUNTIME_PARAMETERS,
    REMOVED_TENSORRT_PARAMETERS,
)

Fault = tuple[str, str]
"""Name of the rule, and a message: what, got, expected, what to do."""


@dataclass(frozen=True, order=True, slots=True)
class Finding:
    """One fault in one file."""

    file: Path
    """Path relative to the repository."""
    rule: str
    """Name of the rule, one word."""
    message: str
    """One line: what, got, expected, and what to do."""

    def __str__(self) -> str:
        return f"{self.file}: {self.rule}: {self.message}"


@dataclass(frozen=True, slots=True)
class _Model:
    """One model of a repository, with the configuration that a config name selects."""

    directory: Path
    """`<repository>/<model>`."""
    file: Path
    """The configuration, relative to the repository."""
    config: pb.ModelConfig

    @property
    def has_own_queue(self) -> bool:
        """Whether the embedded server's own backend reads it; that backend has its own queue and batching."""
        return self.file.stem == HOST_CONFIG


def lint_repository(repository: Path) -> list[Finding]:
    """Check every model's `config.pbtxt` and `configs/*.pbtxt`, separately and together.

    Returns:
        The findings, sorted by file; none when all is well.

    Raises:
        ArtefactError: there is no model in it.
    """
    directories = sorted(
        path for path in repository.glob("*") if path.is_dir() and not path.name.startswith(".")
    )
    if not directories:
        raise ArtefactError(f"{repository}: no model in it; publish one with fruitstand export")
    names = sorted({path.stem for directory in directories for path in directory.glob("configs/*.pbtxt")})
    # A file that several sets share is reported once.
    return sorted({finding for name in (None, *names) for finding in _lint_set(directories, name)})


def _lint_set(directories: list[Path], config_name: str | None) -> Iterator[Finding]:
    """The models as a server with this `--model-config-name` reads them."""
    models: dict[str, _Model] = {}
    for directory in directories:
        path = directory / "configs" / f"{config_name}.pbtxt"
        if config_name is None or not path.is_file():
            path = directory / "config.pbtxt"
        file = path.relative_to(directory.parent)
        try:
            config = text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
        except (OSError, UnicodeDecodeError, text_format.ParseError) as exc:
            # The text of an OSError contains the whole path.
            reason = " ".join(str(getattr(exc, "strerror", None) or exc).split())
            yield Finding(file, "unreadable", f"{reason}; render it again from export/templates")
            continue
        models[directory.name] = _Model(directory, file, config)
    for model in models.values():
        for fault in _model_faults(model):
            yield Finding(model.file, *fault)
        yield from _ensemble_findings(model, models)


def _ensemble_findings(ensemble: _Model, models: Mapping[str, _Model]) -> Iterator[Finding]:
    first = {tensor.name for tensor in ensemble.config.input}
    for step in ensemble.config.ensemble_scheduling.step:
        model = models.get(step.model_name)
        if model is None:
            continue
        for field, mapped, tensors in (
            ("input_map", step.input_map, model.config.input),
            # If an output is not requested, Triton fails with "unexpected deadlock" and DALI refuses.
            ("output_map", step.output_map, model.config.output),
        ):
            expected = sorted(tensor.name for tensor in tensors)
            if sorted(mapped) != expected:
                yield Finding(
                    ensemble.file,
                    "ensemble_map",
                    f"{field} of step {step.model_name} names {sorted(mapped)}, {model.file} has {expected}",
                )
        for fault in _queue_faults(model, is_first=not first.isdisjoint(step.input_map.values())):
            yield Finding(model.file, *fault)
        if model.config.backend == "python":  # a guard: requests also queue in the step after it
            first.update(step.output_map.values())


def _queue_faults(model: _Model, *, is_first: bool) -> Iterator[Fault]:
    """Every step needs a queue timeout, and the first one, or the one after a guard, a queue limit.

    A queue limit in a later step can hang the ensemble before 26.02.
    """
    if model.has_own_queue:
        policy = _own_policy(model.config)
    elif model.config.HasField("dynamic_batching"):
        policy = model.config.dynamic_batching.default_queue_policy
    else:
        return
    if not is_first and policy.max_queue_size:
        yield (
            "later_queue_limit",
            f"max_queue_size {policy.max_queue_size} on a later step; only the first may have a limit",
        )
    expected = {
        "timeout_action: REJECT": policy.timeout_action == pb.ModelQueuePolicy.REJECT,
        # An override only applies if it is below the default; a default of 0 turns the timeout off.
        "default_timeout_microseconds above 0": policy.default_timeout_microseconds > 0,
        "allow_timeout_override: true": policy.allow_timeout_override,
        "max_queue_size above 0": policy.max_queue_size > 0 or not is_first,
    }
    missing = [setting for setting, is_met in expected.items() if not is_met]
    if missing:
        yield "queue_policy", f"default_queue_policy lacks {', '.join(missing)}: work would pile up"


def _own_policy(config: pb.ModelConfig) -> pb.ModelQueuePolicy:
    """The queue limits in a model's parameters, for the embedded server's own backend."""
    given = {key: one.string_value for key, one in config.parameters.items()}

    def number(key: str) -> int:
        return int(given[key]) if given.get(key, "").isdecimal() else 0

    return pb.ModelQueuePolicy(
        default_timeout_microseconds=number("default_timeout_microseconds"),
        allow_timeout_override=given.get("allow_timeout_override", "true") in ("1", "true"),
        max_queue_size=number("max_queue_size"),
    )


def _model_faults(model: _Model) -> Iterator[Fault]:
    """Faults of one model, independent of the others."""
    config = model.config
    for tensor in config.input:
        variable = list(tensor.dims) == [-1] and tensor.data_type == pb.TYPE_UINT8
        if variable and not tensor.allow_ragged_batch:
            yield (
                "ragged_batch",
                f"{tensor.name} is UINT8 [-1] without allow_ragged_batch: a batch would end at the first"
                " image of another length; set allow_ragged_batch: true",
            )
    if config.max_batch_size < 1:
        yield (
            "max_batch_size",
            f"max_batch_size is {config.max_batch_size}: no batch forms; expected 1 or more",
        )
    yield from _label_faults(model)
    if config.platform == "ensemble":
        return
    if model.has_own_queue == config.HasField("dynamic_batching"):
        yield (
            "dynamic_batching",
            "dynamic_batching in front of a backend that forms its own batches costs time; remove it"
            if model.has_own_queue
            else "no dynamic_batching: nothing adds it here; write at least dynamic_batching { }",
        )
    kinds = {group.kind for group in config.instance_group}
    if not kinds or kinds - {pb.ModelInstanceGroup.KIND_CPU, pb.ModelInstanceGroup.KIND_GPU}:
        yield "instance_group", "the default differs by server; write count and KIND_CPU or KIND_GPU"
    # The explainer's head takes maps of the network's own size, and answers nobody who waits for a label.
    if not config.model_warmup and not model.directory.name.endswith(EXPLAINER_HEAD):
        yield "warmup_missing", "no model_warmup: ready would be true before an inference ran; add a sample"
    if config.backend == "onnxruntime":
        yield from _onnxruntime_faults(model)


def _label_faults(model: _Model) -> Iterator[Fault]:
    for tensor in model.config.output:
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


def _onnxruntime_faults(model: _Model) -> Iterator[Fault]:
    """Parameters, graph level and execution accelerators of the onnxruntime backend."""
    config = model.config
    own = {**HOST_PARAMETERS, **HOST_INFER_PARAMETERS} if model.has_own_queue else {}
    allowed = {**ONNXRUNTIME_PARAMETERS, **own}
    for key, value in sorted(config.parameters.items()):
        if key not in allowed:
            yield "parameter", f"unknown parameter {key!r}, allowed {', '.join(sorted(allowed))}"
        elif not re.fullmatch(allowed[key], value.string_value):
            yield "parameter", f"parameter {key} is {value.string_value!r}, allowed {allowed[key]}"
    level = config.optimization.graph.level
    if level not in GRAPH_LEVELS:
        allowed_levels = ", ".join(map(str, GRAPH_LEVELS))
        yield "graph_level", f"optimization.graph.level is {level}, allowed {allowed_levels}"
    accelerators = config.optimization.execution_accelerators
    if any(accelerator.parameters for accelerator in accelerators.cpu_execution_accelerator):
        yield "openvino_parameter", "parameters of the openvino accelerator are ignored; remove them"
    on_gpu = any(group.kind == pb.ModelInstanceGroup.KIND_GPU for group in config.instance_group)
    for accelerator in accelerators.gpu_execution_accelerator:
        if config.instance_group and not on_gpu:
            yield "accelerator", f"{accelerator.name} is ignored without an instance_group of KIND_GPU"
        elif accelerator.name == "tensorrt":
            yield from _tensorrt_faults(config, accelerator.parameters)
        elif accelerator.name == "cuda":
            given = {*accelerator.parameters, *config.parameters} & set(DEPRECATED_CUDA_PARAMETERS)
            if config.parameters and given:
                yield (
                    "cuda_overwritten",
                    f"{', '.join(sorted(given))}: with any model parameter the backend writes its own"
                    " value over the cuda accelerator's; keep the accelerator's and remove `parameters`",
                )


def _tensorrt_faults(config: pb.ModelConfig, parameters: Mapping[str, str]) -> Iterator[Fault]:
    """Parameters of the TensorRT accelerator: removed, harmful, and the engine's three shapes."""
    for key in sorted(set(parameters) & set(REMOVED_TENSORRT_PARAMETERS)):
        yield (
            "tensorrt_removed",
            f"{key}: TensorRT 11 has no such setting, it computes in the types of the ONNX file; remove it",
        )
    if parameters.get("trt_engine_cache_enable", "0") in ("1", "true"):
        yield (
            "tensorrt_engine_cache",
            "trt_engine_cache_enable: a kept engine is found by names, not by weights, and would"
            " answer for the next version; keep timings alone (trt_timing_cache_enable)",
        )
    dims = {tensor.name: "x".join(map(str, tensor.dims)) for tensor in config.input}
    batches: list[int] = []
    for key in (f"trt_profile_{bound}_shapes" for bound in ("min", "opt", "max")):
        shapes = dict(part.rpartition(":")[::2] for part in parameters.get(key, "").split(","))
        sizes = {shape.partition("x")[0] for shape in shapes.values()}
        got = {name: shape.partition("x")[2] for name, shape in shapes.items()}
        if got != dims or len(sizes) != 1 or not min(sizes).isdecimal():
            expected = ",".join(f"{name}:<batch>x{shape}" for name, shape in dims.items())
            yield "tensorrt_profile", f"{key} is {parameters.get(key, '')!r}, expected {expected!r}"
            return
        batches.append(int(min(sizes)))
    low, usual, high = batches
    if config.max_batch_size > 0 and not 1 == low <= usual <= high == config.max_batch_size:
        yield (
            "tensorrt_profile",
            f"batches of min, opt and max shapes are {batches}, expected 1, any between, and max_batch_size,"
            f" {config.max_batch_size}: TensorRT builds an engine anew for what lies outside",
        )
