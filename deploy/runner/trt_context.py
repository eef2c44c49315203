"""Make runtime, context and profiler of either TensorRT module, as their versions differ."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from deploy.runner.errors import BuildError
from deploy.runner.trt_log import TrtLog


def deserialized(module: ModuleType, log: TrtLog, plan: bytes) -> tuple[Any, Any]:
    """Return the runtime, which has to live as long as its engines, and the engine."""
    runtime = module.Runtime(log.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        failed = log.failed()
        raise BuildError(f"the plan does not load on this machine: {failed.reason}", failed.log)
    return runtime, engine


def lends_memory(module: ModuleType) -> bool:
    """Whether engines of this module are built to be given their memory: see the builder's flag in `make_config`."""
    return hasattr(module.BuilderFlag, "REQUIRE_USER_ALLOCATION")


def new_context(module: ModuleType, engine: Any) -> Any:
    """Return a context of an engine; None when the runtime makes none."""
    if lends_memory(module):
        return engine.create_execution_context(module.ExecutionContextAllocationStrategy.USER_MANAGED)
    return engine.create_execution_context()


def is_capturable(context: Any, stream: int) -> bool:
    """Ask a context that can tell; TensorRT cannot, and has to be tried."""
    return bool(context.is_stream_capturable(stream)) if hasattr(context, "is_stream_capturable") else True


def inspected(module: ModuleType, engine: Any) -> str:
    """Return what the engine inspector tells of the layers, as JSON."""
    return str(engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON))


def new_profiler(module: ModuleType) -> Any:
    """Return a profiler whose `times` are milliseconds by the name of the layer."""

    # the base class is only known once the module is loaded
    class Collector(module.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            # The bindings refuse an object whose C++ half was built through super().
            module.IProfiler.__init__(self)
            self.times: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.setdefault(layer_name, []).append(ms)

    return Collector()
