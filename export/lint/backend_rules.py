"""What a model's configuration can get wrong about its backend: parameters, graph level, accelerators.

Source:
    triton-inference-server/onnxruntime_backend `src/onnxruntime.cc`, as of 24.10: unknown accelerators and
    TensorRT parameters keep a model from loading, the rest is ignored in silence.
"""

import re
from collections.abc import Iterator, Mapping

from tritonclient.grpc import model_config_pb2 as pb

from fruitstand.repository.triton_keys import (
    CPU_ACCELERATORS,
    CUDA_PARAMETERS,
    DEPRECATED_CUDA_PARAMETERS,
    GPU_ACCELERATORS,
    GRAPH_LEVELS,
    REMOVED_TENSORRT_PARAMETERS,
    TENSORRT_PARAMETERS,
)

Fault = tuple[str, str]
"""The rule's name, and a message: what, got, expected, what to do."""


def key_faults(what: str, given: Mapping[str, str], allowed: Mapping[str, str]) -> Iterator[Fault]:
    """Keys and values of a map; the rule is named after `what` is given."""
    rule = what.replace(" ", "_")
    for key, value in sorted(given.items()):
        if key not in allowed:
            yield rule, f"unknown {what} {key!r}, allowed {', '.join(sorted(allowed))}"
        elif not re.fullmatch(allowed[key], value):
            yield rule, f"{what} {key} is {value!r}, allowed {allowed[key]}"


def optimization_faults(config: pb.ModelConfig) -> Iterator[Fault]:
    """Graph level and execution accelerators of a model with the onnxruntime backend."""
    level = config.optimization.graph.level
    if level not in GRAPH_LEVELS:
        yield (
            "graph_level",
            f"optimization.graph.level is {level}, allowed {', '.join(map(str, GRAPH_LEVELS))}",
        )
    accelerators = config.optimization.execution_accelerators
    on_gpu = any(group.kind == pb.ModelInstanceGroup.KIND_GPU for group in config.instance_group)
    for field, allowed in (("cpu", CPU_ACCELERATORS), ("gpu", GPU_ACCELERATORS)):
        for accelerator in getattr(accelerators, f"{field}_execution_accelerator"):
            if accelerator.name not in allowed:
                yield "accelerator", f"{field} accelerator {accelerator.name!r}, allowed {', '.join(allowed)}"
            elif field == "gpu" and config.instance_group and not on_gpu:
                yield "accelerator", f"{accelerator.name} is ignored without an instance_group of KIND_GPU"
            elif accelerator.name == "tensorrt":
                yield from _tensorrt_faults(config, accelerator.parameters)
            elif accelerator.name == "cuda":
                yield from key_faults("cuda parameter", accelerator.parameters, CUDA_PARAMETERS)
                given = {*accelerator.parameters, *config.parameters} & set(DEPRECATED_CUDA_PARAMETERS)
                if config.parameters and given:
                    yield (
                        "cuda_overwritten",
                        f"{', '.join(sorted(given))}: with any model parameter the backend writes its own"
                        " value over the cuda accelerator's; keep the accelerator's and remove `parameters`",
                    )
            elif accelerator.parameters:
                yield "openvino_parameter", "parameters of the openvino accelerator are ignored; remove them"


def _tensorrt_faults(config: pb.ModelConfig, parameters: Mapping[str, str]) -> Iterator[Fault]:
    """Parameters of the TensorRT accelerator: removed, unknown, harmful, and the engine's shapes."""
    removed = {key: value for key, value in parameters.items() if key in REMOVED_TENSORRT_PARAMETERS}
    for key in sorted(removed):
        yield (
            "tensorrt_removed",
            f"{key}: TensorRT 11 has no such setting, it computes in the types of the ONNX file; remove it",
        )
    kept = {key: value for key, value in parameters.items() if key not in removed}
    yield from key_faults("tensorrt parameter", kept, TENSORRT_PARAMETERS)
    yield from _profile_faults(config, kept)
    if kept.get("trt_engine_cache_enable", "0") in ("1", "true"):
        yield (
            "tensorrt_engine_cache",
            "trt_engine_cache_enable: a kept engine is found by names, not by weights, and would"
            " answer for the next version; keep timings alone (trt_timing_cache_enable)",
        )


def _profile_faults(config: pb.ModelConfig, parameters: Mapping[str, str]) -> Iterator[Fault]:
    """The three shapes of one engine: batch 1, the usual one, the largest."""
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
