"""Keys and values that our backends accept in a Triton model configuration.

Each key maps to a regular expression that its whole value must match.

Source:
    triton-inference-server/onnxruntime_backend `src/onnxruntime.cc` and README, dali_backend
    `src/parameters.h`, common `protobuf/model_config.proto`, each as of 24.10; ONNX Runtime 1.19
    `core/providers/cuda/cuda_execution_provider_info.cc`.
"""

from types import MappingProxyType

BOOLEAN = "0|1|true|false"
INTEGER = "[0-9]+"

DALI_PARAMETERS = MappingProxyType({"num_threads": "-1|[1-9][0-9]*"})
"""Model parameters that both servers support; `split_along_outer_axis`, for video, is only in NVIDIA's."""

HOST_PARAMETERS = MappingProxyType(
    {
        "max_queue_size": "[1-9][0-9]*",
        "default_timeout_microseconds": "[1-9][0-9]*",
        "allow_timeout_override": BOOLEAN,
        "max_queue_delay_microseconds": INTEGER,
    }
)
"""Queue limits of our own C++ backend, in `configs/host.pbtxt`, with the names of Triton's batcher."""

HOST_INFER_PARAMETERS = MappingProxyType(
    {"num_workers": INTEGER, "threads_per_worker": "[1-9][0-9]*", "max_part_images": "[1-9][0-9]*"}
)
"""Parameters of this backend for `onnxruntime` models: parallel batches, and threads and images of each.

`num_workers` 0 uses as many as the instance's threads allow.
"""

GRAPH_LEVELS = MappingProxyType(
    {-1: "ORT_ENABLE_BASIC", 0: "ORT_ENABLE_ALL", 1: "ORT_ENABLE_EXTENDED", 2: "ORT_DISABLE_ALL"}
)
"""ONNX Runtime's name of each `optimization.graph.level`; level 2 optimises less, not more."""

DEPRECATED_CUDA_PARAMETERS = MappingProxyType(
    {
        "cudnn_conv_algo_search": "0|1|2",
        "gpu_mem_limit": INTEGER,
        "arena_extend_strategy": "0|1",
        "do_copy_in_default_stream": BOOLEAN,
    }
)
"""Model parameters that the "cuda" accelerator replaces.

If a model has any of its own parameters, the native backend overwrites the accelerator's values with all
four.
"""

ONNXRUNTIME_PARAMETERS = MappingProxyType(
    {
        "intra_op_thread_count": INTEGER,
        "inter_op_thread_count": INTEGER,
        "execution_mode": "0|1",
        "enable_mem_arena": BOOLEAN,
        "enable_mem_pattern": BOOLEAN,
        "session.use_device_allocator_for_initializers": "0|1",
        "memory.enable_memory_arena_shrinkage": "(cpu|gpu):[0-9]+(;(cpu|gpu):[0-9]+)*",
        **DEPRECATED_CUDA_PARAMETERS,
    }
)
"""Model parameters; the native backend silently ignores unknown ones, ours refuses them."""

CPU_ACCELERATORS = ("openvino",)

CUDA_PARAMETERS = MappingProxyType({
    **dict.fromkeys((
        "cudnn_conv_use_max_workspace", "cudnn_conv1d_pad_to_nc1d", "enable_cuda_graph",
        "enable_skip_layer_norm_strict_mode", "prefer_nhwc", "tunable_op_enable", "tunable_op_tuning_enable",
        "use_tf32",
    ), "0|1"),
    **dict.fromkeys(("do_copy_in_default_stream", "use_ep_level_unified_stream"), BOOLEAN),
    **dict.fromkeys(("gpu_mem_limit", "tunable_op_max_tuning_duration_ms"), INTEGER),
    "arena_extend_strategy": "kNextPowerOfTwo|kSameAsRequested",
    "cudnn_conv_algo_search": "EXHAUSTIVE|HEURISTIC|DEFAULT",
})  # fmt: skip
"""Parameters of the "cuda" accelerator, passed to ONNX Runtime unchanged; the instance group sets the
device."""

TENSORRT_PARAMETERS = MappingProxyType({
    **dict.fromkeys((
        "trt_build_heuristics_enable", "trt_context_memory_sharing_enable", "trt_cuda_graph_enable",
        "trt_detailed_build_log", "trt_dla_enable", "trt_dump_ep_context_model", "trt_dump_subgraphs",
        "trt_engine_cache_enable", "trt_force_sequential_engine_build", "trt_force_timing_cache",
        "trt_sparsity_enable", "trt_timing_cache_enable",
    ), BOOLEAN),
    **dict.fromkeys((
        "max_workspace_size_bytes", "trt_dla_core", "trt_max_partition_iterations", "trt_min_subgraph_size",
    ), INTEGER),
    **dict.fromkeys((
        "trt_engine_cache_path", "trt_engine_cache_prefix", "trt_ep_context_file_path",
        "trt_extra_plugin_lib_paths", "trt_profile_max_shapes", "trt_profile_min_shapes",
        "trt_profile_opt_shapes", "trt_tactic_sources", "trt_timing_cache_path",
    ), ".+"),
    "trt_auxiliary_streams": "-?[0-9]+",
    "trt_builder_optimization_level": "[0-5]",
    "trt_ep_context_embed_mode": "0|1",
})  # fmt: skip
"""Parameters of the "tensorrt" accelerator; with an unknown one the model does not load."""

TENSORRT_OPTION_NAMES = MappingProxyType({"max_workspace_size_bytes": "trt_max_workspace_size"})
"""The parameter that has another name in ONNX Runtime."""
