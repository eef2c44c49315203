"""Run and time a TensorRT or TensorRT-RTX engine on the GPU."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.on_device.cuda import Cuda, CudaError, open_cuda
from deploy.on_device.errors import BuildFailed, DeviceError
from deploy.on_device.gpu import gpu_of
from deploy.on_device.trt_build import TrtSettings, build, for_gpu
from deploy.on_device.trt_layers import layers_from_inspector
from deploy.on_device.trt_log import TrtLog, load_module, trt_logged

_PROFILED_RUNS = 10

DeviceBuffer = tuple[int, npt.NDArray[Any]]
"""Address of a tensor on the device, and an array of its shape and type on this side."""


def open_trt_engine(
    runtime: str, model: Path, settings: Mapping[str, Any], inputs: Mapping[str, np.ndarray], cache: Path
) -> TrtEngine:
    """Build an ONNX file for this GPU, or take its plan from the directory `cache`, and load it with one batch of inputs by name.

    `settings` are those of `TrtSettings` without the runtime. Raises BuildFailed when the runtime makes no engine of the file,
    DeviceError when a module or the GPU is missing, a setting is unknown, or the inputs do not fit.
    """
    module = load_module(runtime)
    cuda = open_cuda()
    try:
        gpu = gpu_of(cuda)
        built = build(module, model, for_gpu(module, TrtSettings.from_json(runtime, settings), gpu), cache, gpu)
        engine = TrtEngine(module, cuda, built.content, inputs)
    except BaseException:
        cuda.close()
        raise
    engine.plan_sha256 = built.sha256
    return engine


def layers_of_plan(module: ModuleType, plan: bytes) -> list[dict[str, Any]]:
    """Return the layers of a plan as the engine inspector tells them; takes a GPU.

    Raises BuildFailed when the plan does not load, ValueError when the inspector's answer is unknown.
    """
    with trt_logged(module) as log:
        _runtime, engine = _deserialized(module, log, plan)
        return layers_from_inspector(_inspected(module, engine))


class TrtEngine:
    """An engine in the device's memory with one batch of inputs, which stays there.

    `clock` says what `time` reads: CUDA events around launches of one CUDA graph, or around single enqueues where CUDA captures no graph.
    `plan_sha256` is the hash of a plan that was built here, None of one that was given.
    """

    plan_sha256: str | None = None

    def __init__(self, module: ModuleType, cuda: Cuda, plan: bytes, inputs: Mapping[str, np.ndarray]) -> None:
        """Load the plan, run it once, and capture it; `cuda` is closed with the engine.

        Raises BuildFailed when the plan does not load or run, DeviceError when the inputs do not fit.
        """
        self._module = module
        self._cuda = cuda
        self._buffers: dict[str, DeviceBuffer] = {}
        try:
            with trt_logged(module) as log:
                self._runtime, self._engine = _deserialized(module, log, plan)
                self._context = self._engine.create_execution_context()
                if self._context is None:
                    raise log.failed()
                self._names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
                self._input_names = [name for name in self._names if self._is_input(name)]
                self._set_shapes(inputs)
                self._allocate()
                self.load(inputs)
                if not self._context.execute_async_v3(cuda.stream):
                    raise log.failed()
                cuda.synchronize()
                captured = cuda.capture(self._enqueue)
        except CudaError as error:
            self._free()
            raise BuildFailed(f"the engine does not run on this GPU: {error}") from error
        except BaseException:
            self._free()
            raise
        self._launch = captured or self._enqueue
        self.clock = f"CUDA events, {'CUDA graph' if captured else 'no CUDA graph'} ({cuda.library})"

    def load(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Replace the inputs by others of the same shapes; DeviceError when a name, shape or type is another."""
        self._check_names(inputs)
        for name in self._input_names:
            address, array = self._buffers[name]
            given = inputs[name]
            if (given.shape, given.dtype) != (array.shape, array.dtype):
                raise DeviceError(
                    f"input {name!r} is {given.dtype} {given.shape}, and the engine takes {array.dtype} {array.shape}: change the input"
                )
            np.copyto(array, given)
            self._cuda.copy_to_device(address, array)
        self._cuda.synchronize()

    def run(self) -> None:
        """Run once, and wait for the end."""
        self._launch()
        self._cuda.synchronize()

    def time(self, repeats: int) -> float:
        """Run `repeats` times; returns the mean milliseconds of a call between two CUDA events."""

        def work() -> None:
            for _ in range(repeats):
                self._launch()

        return self._cuda.elapsed_ms(work) / repeats

    def outputs(self) -> dict[str, np.ndarray]:
        """Run once; returns the outputs by name."""
        self.run()
        outputs = [name for name in self._names if name not in self._input_names]
        for name in outputs:
            address, array = self._buffers[name]
            self._cuda.copy_to_host(array, address)
        self._cuda.synchronize()
        return {name: self._buffers[name][1].copy() for name in outputs}

    def layers(self) -> list[dict[str, Any]] | None:
        """Describe each layer as `layers_from_inspector` does, with its time as `ms`, None where the profiler did not name it.

        The profile is a pass of its own, since it slows the engine down: its times are shares, and do not add up to the latency.
        Returns None when the inspector's answer cannot be read.
        """
        with trt_logged(self._module):
            try:
                layers = layers_from_inspector(_inspected(self._module, self._engine))
            except ValueError:
                return None
            times = self._profiled()
        return [{**layer, "ms": times.get(layer["name"])} for layer in layers]

    def close(self) -> None:
        """Give back the engine, its memory on the device and the stream."""
        self._free()
        self._context = self._engine = self._runtime = None
        self._cuda.close()

    def _is_input(self, name: str) -> bool:
        return bool(self._engine.get_tensor_mode(name) == self._module.TensorIOMode.INPUT)

    def _check_names(self, inputs: Mapping[str, np.ndarray]) -> None:
        if set(inputs) != set(self._input_names):
            raise DeviceError(
                f"the engine takes the inputs {', '.join(self._input_names)}, and was given {', '.join(inputs) or 'none'}"
            )

    def _set_shapes(self, inputs: Mapping[str, np.ndarray]) -> None:
        self._check_names(inputs)
        for name in self._input_names:
            if not self._context.set_input_shape(name, inputs[name].shape):
                raise DeviceError(
                    f"input {name!r} of shape {inputs[name].shape} does not fit the engine, which takes "
                    f"{tuple(self._engine.get_tensor_shape(name))}: change the input or the batch sizes"
                )

    def _allocate(self) -> None:
        """Make room for every input and output, whose shapes are all known once the input shapes are set."""
        for name in self._names:
            shape = tuple(self._context.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                raise DeviceError(
                    f"the shape of output {name!r} depends on the values of the input: export the model with a fixed one"
                )
            array = np.empty(shape, self._module.nptype(self._engine.get_tensor_dtype(name)))
            address = self._cuda.allocate(max(1, array.nbytes))  # CUDA gives no address for nothing
            self._buffers[name] = (address, array)
            self._context.set_tensor_address(name, address)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream):
            raise BuildFailed("TensorRT did not take the engine's work")

    def _profiled(self) -> dict[str, float]:
        """Return the median milliseconds of each layer over some runs in a context of their own."""
        profiler = _profiler(self._module)
        context = self._engine.create_execution_context()
        for name, (address, array) in self._buffers.items():
            if name in self._input_names:
                context.set_input_shape(name, array.shape)
            context.set_tensor_address(name, address)
        context.profiler = profiler
        for _ in range(_PROFILED_RUNS):
            context.execute_async_v3(self._cuda.stream)
            self._cuda.synchronize()
        return {name: statistics.median(times) for name, times in profiler.times.items()}

    def _free(self) -> None:
        for address, _ in self._buffers.values():
            self._cuda.free(address)
        self._buffers.clear()


def _deserialized(module: ModuleType, log: TrtLog, plan: bytes) -> tuple[Any, Any]:
    """Return the runtime, which has to live as long as its engines, and the engine."""
    runtime = module.Runtime(log.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        failed = log.failed()
        raise BuildFailed(f"the plan does not load on this machine: {failed.reason}", failed.log)
    return runtime, engine


def _inspected(module: ModuleType, engine: Any) -> str:
    return str(engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON))


def _profiler(module: ModuleType) -> Any:
    class Collector(module.IProfiler):  # type: ignore[misc, name-defined]  # the base class is only known once the module is loaded
        def __init__(self) -> None:
            # The bindings refuse an object whose C++ half was built through super().
            module.IProfiler.__init__(self)
            self.times: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.setdefault(layer_name, []).append(ms)

    return Collector()
