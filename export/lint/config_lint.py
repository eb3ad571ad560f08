"""Check a repository's `config.pbtxt` and `configs/*.pbtxt` for what Triton says late, badly or never.

    findings = lint_repository(Path("model_repository"))

Read without a server. `export.lint.config_rules` looks at each model by itself; here are the schema and what
models have to agree on.
"""

import functools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2 as pb

from export.lint.config_rules import Model, describe, model_faults
from fruitstand.errors import ArtefactError
from fruitstand.repository.triton_keys import LATER_FIELDS


@dataclass(frozen=True, order=True, slots=True)
class Finding:
    """One fault in one file."""

    file: Path
    """Relative to the repository."""
    rule: str
    """What was broken, in one word."""
    message: str
    """What, got, expected, and what to do; one line."""

    def __str__(self) -> str:
        return f"{self.file}: {self.rule}: {self.message}"


def lint_repository(repository: Path, *, config_name: str | None = None) -> list[Finding]:
    """Check every model's configuration, and what they make together.

    Args:
        repository: the model repository.
        config_name: check what `--model-config-name` selects: `configs/<name>.pbtxt`, or `config.pbtxt` where
            a model has none. None checks the default set and every named one.

    Returns:
        The findings, sorted by file; none when all is well.

    Raises:
        ArtefactError: there is no model in it, or none with that config name.
    """
    directories = sorted(
        path for path in repository.glob("*") if path.is_dir() and not path.name.startswith(".")
    )
    if not directories:
        raise ArtefactError(f"{repository}: no model in it; publish one with fruitstand export")
    names = sorted({path.stem for directory in directories for path in directory.glob("configs/*.pbtxt")})
    if config_name is not None and config_name not in names:
        known = ", ".join(names) or "none"
        raise ArtefactError(f"{repository}: no model has configs/{config_name}.pbtxt, there are {known}")
    sets = [None, *names] if config_name is None else [config_name]
    # A file that several sets share is reported once.
    return sorted({finding for name in sets for finding in _lint_set(directories, name)})


def _lint_set(directories: list[Path], config_name: str | None) -> Iterator[Finding]:
    models: dict[str, Model | None] = {}
    for directory in directories:
        path = directory / "configs" / f"{config_name}.pbtxt"
        if config_name is None or not path.is_file():
            path = directory / "config.pbtxt"
        file = path.relative_to(directory.parent)
        models[directory.name] = None
        try:
            text = path.read_text(encoding="utf-8")
            config = text_format.Parse(text, pb.ModelConfig())
        except (OSError, UnicodeDecodeError, text_format.ParseError) as exc:
            # An OSError's own text has the whole path.
            reason = " ".join(str(getattr(exc, "strerror", None) or exc).split())
            yield Finding(file, "unreadable", f"{reason}; render it again from export/templates")
            continue
        try:
            text_format.Parse(text, _schema_24_10()())
        except text_format.ParseError as exc:
            yield Finding(file, "schema", f"outside the 24.10 schema: {exc}; remove it, no model would load")
        model = models[directory.name] = Model(directory, file, config)
        for fault in model_faults(model):
            yield Finding(file, *fault)
    for model in models.values():
        if model is not None and model.is_ensemble:
            yield from _ensemble_findings(model, models)


@functools.cache
def _schema_24_10() -> type[Message]:
    """The installed `ModelConfig` without the fields that came after 24.10."""
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    for message in file.message_type:
        kept = [field for field in message.field if field.name not in LATER_FIELDS.get(message.name, ())]
        del message.field[:]
        message.field.extend(kept)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(pb.ModelConfig.DESCRIPTOR.full_name))


def _ensemble_findings(ensemble: Model, models: dict[str, Model | None]) -> Iterator[Finding]:
    config = ensemble.config
    if not config.ensemble_scheduling.step:
        yield Finding(ensemble.file, "ensemble_step", "no step: an ensemble answers with what its steps make")
    inputs = {tensor.name for tensor in config.input}
    for step in config.ensemble_scheduling.step:
        if step.model_name not in models:
            yield Finding(
                ensemble.file,
                "ensemble_step",
                f"step {step.model_name!r} is no model here, there are {', '.join(models)}",
            )
        model = models.get(step.model_name)
        if model is not None:
            yield from _step_findings(ensemble, step, model)
            yield from _queue_findings(model, is_first=not inputs.isdisjoint(step.input_map.values()))
            if model.config.backend == "python":  # a guard: work piles up in the step behind it as well
                inputs.update(step.output_map.values())
    yield from _tensor_findings(ensemble, models)


def _step_findings(ensemble: Model, step: pb.ModelEnsembling.Step, model: Model) -> Iterator[Finding]:
    for field, mapped, tensors in (
        ("input_map", step.input_map, model.config.input),
        # Triton ends in "unexpected deadlock", and DALI refuses, when an output is not asked for.
        ("output_map", step.output_map, model.config.output),
    ):
        expected = sorted(tensor.name for tensor in tensors)
        if sorted(mapped) != expected:
            yield Finding(
                ensemble.file,
                "ensemble_map",
                f"{field} of step {step.model_name} names {sorted(mapped)}, {model.file} has {expected}",
            )
    served = model.served_versions()
    if step.model_version != -1 and served and step.model_version not in served:
        yield Finding(
            ensemble.file,
            "step_version",
            f"step {step.model_name} asks for version {step.model_version}, {model.file} serves"
            f" {', '.join(map(str, served))}; change the step or version_policy",
        )
    if model.config.max_batch_size != ensemble.config.max_batch_size:
        yield Finding(
            ensemble.file,
            "ensemble_batch_size",
            f"max_batch_size is {ensemble.config.max_batch_size}, {model.file} has"
            f" {model.config.max_batch_size}; expected the same",
        )


def _queue_findings(model: Model, *, is_first: bool) -> Iterator[Finding]:
    """Every step refuses what waits too long, and the first what is too much; so does one behind a guard.

    A later step that refuses what is too much can hang the ensemble before 26.02.
    """
    if model.has_own_queue:
        policy = _own_policy(model)
    elif model.config.HasField("dynamic_batching"):
        policy = model.config.dynamic_batching.default_queue_policy
    else:
        return
    if not is_first and policy.max_queue_size:
        message = f"max_queue_size {policy.max_queue_size} on a later step; only the first may have a limit"
        yield Finding(model.file, "later_queue_limit", message)
    expected = {
        "timeout_action: REJECT": policy.timeout_action == pb.ModelQueuePolicy.REJECT,
        # An override counts only when it is below the default, and the default of 0 switches it off.
        "default_timeout_microseconds above 0": policy.default_timeout_microseconds > 0,
        "allow_timeout_override: true": policy.allow_timeout_override,
        "max_queue_size above 0": policy.max_queue_size > 0 or not is_first,
    }
    missing = [setting for setting, is_met in expected.items() if not is_met]
    if missing:
        message = f"default_queue_policy lacks {', '.join(missing)}: work would pile up"
        yield Finding(model.file, "queue_policy", message)


def _own_policy(model: Model) -> pb.ModelQueuePolicy:
    """The limits that a model's parameters give the embedded server's own backend."""
    given = {key: one.string_value for key, one in model.config.parameters.items()}

    def number(key: str) -> int:
        return int(given[key]) if given.get(key, "").isdecimal() else 0

    return pb.ModelQueuePolicy(
        default_timeout_microseconds=number("default_timeout_microseconds"),
        allow_timeout_override=given.get("allow_timeout_override", "true") in ("1", "true"),
        max_queue_size=number("max_queue_size"),
    )


def _tensor_findings(ensemble: Model, models: dict[str, Model | None]) -> Iterator[Finding]:
    """Follow every tensor from where it is made to where it is taken."""
    made: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
    taken: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
    for tensor in ensemble.config.input:
        made[tensor.name].append((f"the ensemble's input {tensor.name}", describe(tensor)))
    for tensor in ensemble.config.output:
        taken[tensor.name].append((f"the ensemble's output {tensor.name}", describe(tensor)))
    for step in ensemble.config.ensemble_scheduling.step:
        model = models.get(step.model_name)
        config = pb.ModelConfig() if model is None else model.config
        for ends, mapped, tensors in (
            (taken, step.input_map, config.input),
            (made, step.output_map, config.output),
        ):
            described = {tensor.name: describe(tensor) for tensor in tensors}
            for name, tensor in mapped.items():
                # None: the step's fault is already found, nothing can be said about its tensor.
                ends[tensor].append((f"{name} of {model.file if model else ''}", described.get(name)))
    for tensor in sorted({*made, *taken}):
        if len(made[tensor]) != 1:
            sources = " and ".join(where for where, _ in made[tensor]) or "nothing"
            message = f"{tensor!r} is made by {sources}, expected one input or one step's output"
            yield Finding(ensemble.file, "ensemble_tensor", message)
            continue
        ((source, source_type),) = made[tensor]
        if tensor in {entry.name for entry in ensemble.config.input} and not taken[tensor]:
            yield Finding(ensemble.file, "ensemble_tensor", f"{source} is taken by no step; remove it")
        for sink, sink_type in taken[tensor]:
            if None not in (source_type, sink_type) and source_type != sink_type:
                message = f"{source} is {source_type}, {sink} is {sink_type}; expected the same"
                yield Finding(ensemble.file, "tensor_type", message)
