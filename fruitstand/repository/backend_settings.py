"""Which settings of a Triton model configuration our two stand-in backends honour, which not, and why.

`docs/backends.md` holds the table; `python -m fruitstand.repository.backend_settings` prints it. The
stand-ins, and the test that tries every line of it on them, read the same.
"""

from dataclasses import dataclass

from fruitstand.repository.triton_keys import (
    CPU_ACCELERATORS,
    CUDA_PARAMETERS,
    DALI_PARAMETERS,
    DEPRECATED_CUDA_PARAMETERS,
    GPU_ACCELERATORS,
    HOST_INFER_PARAMETERS,
    HOST_PARAMETERS,
    ONNXRUNTIME_PARAMETERS,
    TENSORRT_PARAMETERS,
)

HONOURED, NO_EFFECT, REFUSED = "honoured", "no effect", "refused"
ONNXRUNTIME, DALI, BOTH = "onnxruntime", "dali", "both"


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of the table."""

    backend: str
    """`onnxruntime`, `dali` or `both`."""
    path: str
    """Where it stands in `config.pbtxt`; `parameters.KEY` for a model parameter."""
    example: str
    """A value that is not the default, as the protobuf's text."""
    verdict: str
    """`honoured`; `no effect`, with a warning in the log; or `refused`, with an error."""
    why: str = ""

    def applies_to(self, backend: str) -> bool:
        """Whether that backend meets it."""
        return self.backend in (backend, BOTH)


_GPU_ONLY = "on GPU instances; without effect on the processor"
_OURS_DIFFERS = (
    f"{_GPU_ONLY}. The native backend writes the defaults of all four over the cuda accelerator's as soon as"
    " any parameter is set; ours does not"
)
_NOT_IN_24_10 = {"session.use_device_allocator_for_initializers": "natively ignored in 24.10, honoured since"}
_BY_CORE = "Triton's core does it, for every backend"
_HOST_ONLY = "in `configs/host.pbtxt`, for our own C++ backend; without effect on the Python stubs"
HOST_EXAMPLES = dict.fromkeys(HOST_PARAMETERS, "7") | {"allow_timeout_override": "true"}

SETTINGS = (
    *(
        Setting(
            ONNXRUNTIME,
            f"parameters.{key}",
            {"execution_mode": "1", "memory.enable_memory_arena_shrinkage": "cpu:0"}.get(key, "1"),
            HONOURED,
            _OURS_DIFFERS if key in DEPRECATED_CUDA_PARAMETERS else _NOT_IN_24_10.get(key, ""),
        )
        for key in ONNXRUNTIME_PARAMETERS
    ),
    Setting(ONNXRUNTIME, "parameters.ANY_OTHER", "1", REFUSED, "the native backend ignores it in silence"),
    Setting(ONNXRUNTIME, "optimization.graph.level", "1", HONOURED, "-1, 0, 1 or 2; others are refused"),
    Setting(ONNXRUNTIME, "optimization.execution_accelerators.cpu_execution_accelerator",
            CPU_ACCELERATORS[0], HONOURED, "openvino; its parameters have no effect, as natively. Where the"
            " installed onnxruntime has none, its own kernels compute and the log says so"),
    Setting(ONNXRUNTIME, "optimization.execution_accelerators.gpu_execution_accelerator",
            GPU_ACCELERATORS[0], HONOURED, f"{', '.join(GPU_ACCELERATORS)}, with {len(TENSORRT_PARAMETERS)}"
            f" and {len(CUDA_PARAMETERS)} parameters; {_GPU_ONLY}"),
    Setting(ONNXRUNTIME, "model_operations.op_library_filename", "ops.so", HONOURED),
    Setting(ONNXRUNTIME, "input.allow_ragged_batch", "true", REFUSED, "one batch is one array here"),
    Setting(ONNXRUNTIME, "input.optional", "true", REFUSED, "natively only with max_batch_size 0"),
    *(Setting(DALI, f"parameters.{key}", "3", HONOURED,
              "-1 is the thread budget of the machine, natively the pipeline's own")
      for key in DALI_PARAMETERS),
    Setting(DALI, "parameters.split_along_outer_axis", "A:B", REFUSED, "for video; exists only natively"),
    Setting(DALI, "parameters.ANY_OTHER", "1", REFUSED, "as natively"),
    Setting(DALI, "optimization.graph.level", "1", NO_EFFECT, "of the onnxruntime backend"),
    Setting(DALI, "optimization.execution_accelerators.cpu_execution_accelerator", "openvino", NO_EFFECT,
            "of the onnxruntime backend"),
    Setting(DALI, "optimization.execution_accelerators.gpu_execution_accelerator", "cuda", NO_EFFECT,
            "of the onnxruntime backend"),
    Setting(DALI, "model_operations.op_library_filename", "ops.so", NO_EFFECT, "of the onnxruntime backend"),
    Setting(DALI, "input.allow_ragged_batch", "true", HONOURED),
    Setting(DALI, "input.optional", "true", REFUSED, "every input is fed in every batch"),
    *(
        Setting(BOTH, f"parameters.{key}", HOST_EXAMPLES[key], HONOURED, _HOST_ONLY)
        for key in HOST_PARAMETERS
    ),
    *(Setting(ONNXRUNTIME, f"parameters.{key}", "7", HONOURED, _HOST_ONLY) for key in HOST_INFER_PARAMETERS),
    Setting(BOTH, "default_model_filename", "other.file", HONOURED),
    Setting(BOTH, "output.label_filename", "labels.txt", HONOURED, _BY_CORE),
    Setting(BOTH, "max_batch_size", "0", REFUSED, "requests without a batch axis; natively for video and"
            " for models with a fixed batch"),
    Setting(BOTH, "instance_group", "count: 2", HONOURED, f"{_BY_CORE}; each instance is a process"
            " on the stubs, threads on the host"),
    Setting(BOTH, "dynamic_batching", "default_queue_policy", HONOURED, _BY_CORE),
    Setting(BOTH, "model_warmup", "sample", HONOURED, _BY_CORE),
    Setting(BOTH, "response_cache", "enable: true", HONOURED, _BY_CORE),
    Setting(BOTH, "version_policy", "specific", HONOURED, _BY_CORE),
    Setting(BOTH, "sequence_batching", "oldest", REFUSED, "no state is kept between requests"),
    Setting(BOTH, "model_transaction_policy.decoupled", "true", REFUSED, "one answer for one request"),
    Setting(BOTH, "input.is_shape_tensor", "true", REFUSED, "TensorRT's own backend"),
    Setting(BOTH, "input.format", "FORMAT_NCHW", NO_EFFECT, "a hint for clients"),
    Setting(BOTH, "batch_input", "kind", REFUSED, "batches are arrays here, without side inputs"),
    Setting(BOTH, "batch_output", "kind", REFUSED, "as above"),
    Setting(BOTH, "optimization.priority", "PRIORITY_MAX", NO_EFFECT, "TensorRT's own backend"),
    Setting(BOTH, "optimization.cuda.graphs", "true", NO_EFFECT,
            "TensorRT's own backend; the cuda accelerator has enable_cuda_graph"),
    Setting(BOTH, "optimization.input_pinned_memory.enable", "false", NO_EFFECT,
            "the Python backend's shared memory is never pinned"),
    Setting(BOTH, "optimization.output_pinned_memory.enable", "false", NO_EFFECT, "as above"),
    Setting(BOTH, "optimization.gather_kernel_buffer_threshold", "1", NO_EFFECT, "as above"),
    Setting(BOTH, "optimization.eager_batching", "true", NO_EFFECT, "as above"),
    Setting(ONNXRUNTIME, "--backend-config=onnxruntime,...", "enable-global-threadpool=1", NO_EFFECT,
            "Triton keeps it from every Python-based backend; no warning is possible. One budget of threads"
            " stands in FRUITSTAND_THREADS"),
    Setting(DALI, "--backend-config=dali,...", "plugin_libs=/a.so", NO_EFFECT, "as above"),
)  # fmt: skip


def table() -> str:
    """The table of `docs/backends.md`, Markdown."""
    rows = ["| backend | setting | here | why |", "|---|---|---|---|"]
    rows += [f"| {one.backend} | `{one.path}` | {one.verdict} | {one.why} |" for one in SETTINGS]
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
