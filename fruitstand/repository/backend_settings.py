"""Settings of a Triton model configuration that our two stand-in backends do not support, and why.

`python -m fruitstand.repository.backend_settings` prints the table for `docs/backends.md`. The stand-ins and
the test that tries every line on them use the same table.
"""

from dataclasses import dataclass

NO_EFFECT, REFUSED = "no effect", "refused"
ONNXRUNTIME, DALI, BOTH = "onnxruntime", "dali", "both"


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of the table."""

    backend: str
    """`onnxruntime`, `dali` or `both`."""
    path: str
    """Path in `config.pbtxt`; `parameters.KEY` for a model parameter."""
    verdict: str
    """`no effect`, with a warning in the log; or `refused`, with an error."""
    why: str
    example: str = "1"
    """A value other than the default, in protobuf's text format."""

    def applies_to(self, backend: str) -> bool:
        """Whether the setting concerns that backend."""
        return self.backend in (backend, BOTH)


_ONNXRUNTIMES = "of the onnxruntime backend"
_TENSORRTS = "TensorRT's own backend"
_ACCELERATORS = "optimization.execution_accelerators"

SETTINGS = (
    Setting(ONNXRUNTIME, "parameters.ANY_OTHER", REFUSED, "the native backend ignores it in silence"),
    Setting(ONNXRUNTIME, "input.allow_ragged_batch", REFUSED, "one batch is one array here", "true"),
    Setting(ONNXRUNTIME, "input.optional", REFUSED, "natively only with max_batch_size 0", "true"),
    Setting(DALI, "parameters.split_along_outer_axis", REFUSED, "for video; exists only natively", "A:B"),
    Setting(DALI, "parameters.ANY_OTHER", REFUSED, "as natively"),
    Setting(DALI, "optimization.graph.level", NO_EFFECT, _ONNXRUNTIMES),
    Setting(DALI, f"{_ACCELERATORS}.cpu_execution_accelerator", NO_EFFECT, _ONNXRUNTIMES),
    Setting(DALI, f"{_ACCELERATORS}.gpu_execution_accelerator", NO_EFFECT, _ONNXRUNTIMES),
    Setting(DALI, "model_operations.op_library_filename", NO_EFFECT, _ONNXRUNTIMES),
    Setting(DALI, "input.optional", REFUSED, "every input is fed in every batch", "true"),
    Setting(BOTH, "max_batch_size", REFUSED, "requests without a batch axis; natively for video and for"
            " models with a fixed batch", "0"),
    Setting(BOTH, "sequence_batching", REFUSED, "no state is kept between requests"),
    Setting(BOTH, "model_transaction_policy.decoupled", REFUSED, "one answer for one request", "true"),
    Setting(BOTH, "input.is_shape_tensor", REFUSED, _TENSORRTS, "true"),
    Setting(BOTH, "input.format", NO_EFFECT, "a hint for clients", "FORMAT_NCHW"),
    Setting(BOTH, "batch_input", REFUSED, "batches are arrays here, without side inputs"),
    Setting(BOTH, "batch_output", REFUSED, "as above"),
    Setting(BOTH, "optimization.priority", NO_EFFECT, _TENSORRTS, "PRIORITY_MAX"),
    Setting(BOTH, "optimization.cuda.graphs", NO_EFFECT,
            f"{_TENSORRTS}; the cuda accelerator has enable_cuda_graph", "true"),
    Setting(BOTH, "optimization.input_pinned_memory.enable", NO_EFFECT,
            "the Python backend's shared memory is never pinned", "false"),
    Setting(BOTH, "optimization.output_pinned_memory.enable", NO_EFFECT, "as above", "false"),
    Setting(BOTH, "optimization.gather_kernel_buffer_threshold", NO_EFFECT, "as above"),
    Setting(BOTH, "optimization.eager_batching", NO_EFFECT, "as above", "true"),
    Setting(ONNXRUNTIME, "--backend-config=onnxruntime,...", NO_EFFECT,
            "Triton keeps it from every Python-based backend; no warning is possible. One budget of threads"
            " stands in FRUITSTAND_THREADS"),
    Setting(DALI, "--backend-config=dali,...", NO_EFFECT, "as above"),
)  # fmt: skip


def table() -> str:
    """The Markdown table of `docs/backends.md`."""
    rows = ["| backend | setting | here | why |", "|---|---|---|---|"]
    rows += [f"| {one.backend} | `{one.path}` | {one.verdict} | {one.why} |" for one in SETTINGS]
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
