"""ONNX Runtime: an engine is an ONNX file and its entry in `engine.json` beside it.

The entry holds everything that plain onnxruntime needs to load the engine as it was built and measured; without it
another session may quantise layers that the plan leaves in float, or overflow inside integer layers. On an x86 CPU
without VNNI, where the engine was built on one with it, `session.x64quantprecision` has to be "1" besides:

    import json
    import onnxruntime as ort

    entry = json.load(open("engine.json"))["engines"]["engine.ort-cpu.onnx"]
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, entry["graph_optimization_level"])
    options.intra_op_num_threads = entry["intra_op_num_threads"]
    options.inter_op_num_threads = entry["inter_op_num_threads"]
    for key, value in entry["session_config"].items():
        options.add_session_config_entry(key, value)
    # a pair is a name and its options
    providers = [each if isinstance(each, str) else tuple(each) for each in entry["providers"]]
    session = ort.InferenceSession(
        "engine.ort-cpu.onnx", options, providers=providers, disabled_optimizers=entry["disabled_optimizers"]
    )

For a provider on a GPU its libraries have to be loaded first, where pip installed them: `import tensorrt` for TensorRT,
and `ort.preload_dlls()`. The list of providers holds no option that depends on the machine, as `trt_engine_cache_path`:
without that TensorRT builds its engine again for each session.
"""

from deploy.backends.onnxruntime.backend import OnnxRuntime, OnnxRuntimeTensorRt
from deploy.backends.onnxruntime.build import build_engine, session_settings
from deploy.backends.onnxruntime.engine import OrtEngine, load_engine
from deploy.backends.onnxruntime.kernels import check_units, unit_kernels
from deploy.backends.onnxruntime.record import OrtEngineRecord

__all__ = [
    "OnnxRuntime", "OnnxRuntimeTensorRt", "OrtEngine", "OrtEngineRecord", "build_engine", "check_units", "load_engine",
    "session_settings", "unit_kernels",
]  # fmt: skip
