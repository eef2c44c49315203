"""Every name of the TensorRT modules that the code uses, by the class it belongs to; "" is the module itself."""

from __future__ import annotations

from types import ModuleType

USED = {
    "": (
        "Builder", "BuilderFlag", "ILogger", "IProfiler", "LayerInformationFormat", "MemoryPoolType", "NetworkDefinitionCreationFlag",
        "OnnxParser", "ProfilingVerbosity", "Runtime", "TensorIOMode", "__version__", "nptype",
    ),
    "Builder": ("build_serialized_network", "create_builder_config", "create_network", "create_optimization_profile"),
    "EngineInspector": ("get_engine_information",),
    "IBuilderConfig": (
        "add_optimization_profile", "avg_timing_iterations", "create_timing_cache", "get_flag", "get_timing_cache", "profiling_verbosity",
        "set_memory_pool_limit", "set_timing_cache",
    ),
    "ICudaEngine": (
        "create_engine_inspector", "create_execution_context", "get_tensor_dtype", "get_tensor_mode", "get_tensor_name",
        "get_tensor_shape", "num_io_tensors",
    ),
    "IExecutionContext": ("execute_async_v3", "get_tensor_shape", "profiler", "set_input_shape", "set_tensor_address"),
    "ILayer": ("metadata",),
    "ILogger": ("log",),
    "INetworkDefinition": ("get_input", "get_layer", "get_output", "num_inputs", "num_layers", "num_outputs"),
    "IOptimizationProfile": ("set_shape",),
    "IProfiler": ("report_layer_time",),
    "ITensor": ("dtype", "name", "shape"),
    "ITimingCache": ("serialize",),
    "LayerInformationFormat": ("JSON",),
    "MemoryPoolType": ("WORKSPACE",),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "OnnxParser": ("get_error", "num_errors", "parse_from_file"),
    "ParserError": ("desc", "node_name", "node_operator"),
    "ProfilingVerbosity": ("DETAILED",),
    "Runtime": ("deserialize_cuda_engine",),
    "TensorIOMode": ("INPUT",),
}  # fmt: skip

RTX_ONLY = {"": ("ComputeCapability",), "IBuilderConfig": ("num_compute_capabilities", "set_compute_capability")}
"""Used where a compute capability was asked for, which only TensorRT-RTX takes."""


def missing_in(module: ModuleType) -> list[str]:
    """Return the names of `USED` that an imported module lacks, with their classes."""
    classes = {owner: getattr(module, owner, None) if owner else module for owner in USED}
    return [f"{owner}.{name}" for owner, names in USED.items() for name in names if not hasattr(classes[owner], name)]
