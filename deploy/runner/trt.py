"""Run and time a TensorRT or TensorRT-RTX engine on the GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.runner.cuda import Cuda
from deploy.runner.errors import BuildError, CudaError, DeviceError
from deploy.runner.trt_context import deserialized, inspected, is_capturable, lends_memory, new_context, new_profiler
from deploy.runner.trt_layers import layers_from_inspector
from deploy.runner.trt_log import trt_logged

_PROFILED_RUNS = 10
_ENQUEUES = 20
_SINGLE_CALLS = 21

DeviceBuffer = tuple[int, npt.NDArray[Any]]
"""Address of a tensor on the device, and an array of its shape and type on this side."""


def layers_of_plan(module: ModuleType, plan: bytes) -> list[dict[str, Any]]:
    """Return the layers of a plan as the engine inspector tells them; takes a GPU.

    Raises BuildError when the plan does not load, ValueError when the inspector's answer is unknown.
    """
    with trt_logged(module) as log:
        _runtime, engine = deserialized(module, log, plan)
        return layers_from_inspector(inspected(module, engine))


class TrtEngine:
    """An engine in the device's memory with one batch of inputs, which stays there; a `GpuTimed` of the measuring
    protocol.

    `captured` says whether its work was captured as a CUDA graph, which is then launched until `use_graph` says
    otherwise. `plan_sha256` is the hash of a plan that was built here, None of one that was given.
    """

    warm_up_ms = 200.0
    """As long as trtexec warms up."""
    plan_sha256: str | None = None

    def __init__(self, module: ModuleType, cuda: Cuda, plan: bytes, inputs: Mapping[str, np.ndarray]) -> None:
        """Load the plan, run it once, and capture it; `cuda` is closed with the engine.

        Raises BuildError when the plan does not load or run, DeviceError when the inputs do not fit.
        """
        self._module = module
        self._cuda = cuda
        self._buffers: dict[str, DeviceBuffer] = {}
        self._workspace = 0
        try:
            with trt_logged(module) as log:
                self._runtime, self._engine = deserialized(module, log, plan)
                self._context = new_context(module, self._engine)
                if self._context is None:
                    raise log.failed()
                self._names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
                self._input_names = [name for name in self._names if self._is_input(name)]
                self._set_shapes(inputs)
                self._allocate()
                self._lend_memory(self._context)
                self.load(inputs)
                if not self._context.execute_async_v3(cuda.stream):
                    raise log.failed()
                cuda.synchronize()
                graph = cuda.capture(self._enqueue) if is_capturable(self._context, cuda.stream) else None
        except CudaError as error:
            self._free()
            raise BuildError(f"the engine does not run on this GPU: {error}") from error
        except BaseException:
            self._free()
            raise
        self._graph = graph
        self.captured = graph is not None
        self.use_graph(self.captured)

    @property
    def clock(self) -> str:
        """What `time` reads: CUDA events around launches of the graph, or around single enqueues."""
        return (
            f"CUDA events, {'no CUDA graph' if self._launch == self._enqueue else 'CUDA graph'} ({self._cuda.library})"
        )

    @property
    def gpu(self) -> dict[str, Any]:
        """What the GPU is."""
        cuda = self._cuda
        return {
            "name": cuda.device_name(),
            "uuid": cuda.uuid,
            "compute_capability": list(cuda.compute_capability()),
            "driver_version": list(cuda.driver_version),
            "sm_count": cuda.sm_count,
            "l2_bytes": cuda.l2_bytes,
            "memory_bytes": cuda.memory_bytes()[1],
        }

    def use_graph(self, on: bool) -> None:
        """Launch the CUDA graph from now on, or enqueue each call; without a graph calls are always enqueued."""
        self._launch = self._graph if on and self._graph is not None else self._enqueue

    def load(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Replace the inputs by others of the same shapes; DeviceError when a name, shape or type is another."""
        self._check_names(inputs)
        for name in self._input_names:
            address, array = self._buffers[name]
            given = inputs[name]
            if (given.shape, given.dtype) != (array.shape, array.dtype):
                raise DeviceError(
                    f"input {name!r} is {given.dtype} {given.shape}, and the engine takes {array.dtype} {array.shape}: "
                    "change the input"
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

    def enqueue_ms(self) -> float:
        """Return the median milliseconds that the host takes to enqueue a call, or to launch its graph, while the GPU
        is idle.
        """
        times = []
        for _ in range(_ENQUEUES):
            self._cuda.synchronize()
            start = time.perf_counter_ns()
            self._launch()
            times.append(time.perf_counter_ns() - start)
        self._cuda.synchronize()
        return statistics.median(times) / 1e6

    def hot_and_cold_ms(self) -> tuple[float, float]:
        """Return the median milliseconds of a single call behind another one, and behind a write of twice the L2 cache.

        In both the GPU is at work while the call is enqueued, so that the launch is in neither unless it takes longer
        than that work. Raises CudaError when there is no memory for the buffer.
        """
        size = 2 * self._cuda.l2_bytes
        buffer = self._cuda.allocate(max(1, size))
        try:
            hot, cold = [], []
            for _ in range(_SINGLE_CALLS):
                self._launch()
                hot.append(self._cuda.elapsed_ms(self._launch))
                self._cuda.fill(buffer, size)
                cold.append(self._cuda.elapsed_ms(self._launch))
        finally:
            self._cuda.free(buffer)
        return statistics.median(hot), statistics.median(cold)

    def outputs(self) -> dict[str, np.ndarray]:
        """Run once; returns the outputs by name."""
        self.run()
        outputs = [name for name in self._names if name not in self._input_names]
        for name in outputs:
            address, array = self._buffers[name]
            self._cuda.copy_to_host(array, address)
        self._cuda.synchronize()
        return {name: self._buffers[name][1].copy() for name in outputs}

    def layers(self) -> tuple[list[dict[str, Any]] | None, str | None]:
        """Describe each layer as `layers_from_inspector` does, with its time as `ms`, None where the profiler did not
        name it.

        The profile is a pass of its own, since it slows the engine down: its times are shares, and do not add up to the
        latency. Where the profiler fails there are no times, and the second value says why. Raises ValueError when the
        inspector's answer is unknown, or what the binding raises.
        """
        with trt_logged(self._module):
            layers = layers_from_inspector(inspected(self._module, self._engine))
            times: dict[str, float] = {}
            note = None
            try:
                times = self._profiled()
            except Exception as error:  # noqa: BLE001 - of the binding, of which all kinds are possible
                note = f"there are no times of the layers: {' '.join(str(error).split()) or type(error).__name__}"
        return [{**layer, "ms": times.get(layer["name"])} for layer in layers], note

    def close(self) -> None:
        """Give back the engine, its memory on the device and the stream."""
        self._free()
        self._graph = None
        self.use_graph(False)
        self._context = self._engine = self._runtime = None
        self._cuda.close()

    def _is_input(self, name: str) -> bool:
        return bool(self._engine.get_tensor_mode(name) == self._module.TensorIOMode.INPUT)

    def _check_names(self, inputs: Mapping[str, np.ndarray]) -> None:
        if set(inputs) != set(self._input_names):
            raise DeviceError(
                f"the engine takes the inputs {', '.join(self._input_names)}, and was given "
                f"{', '.join(inputs) or 'none'}"
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
                    f"the shape of output {name!r} depends on the values of the input: export the model with a fixed "
                    "one"
                )
            array = np.empty(shape, self._module.nptype(self._engine.get_tensor_dtype(name)))
            address = self._cuda.allocate(max(1, array.nbytes))  # CUDA gives no address for nothing
            self._buffers[name] = (address, array)
            self._context.set_tensor_address(name, address)

    def _lend_memory(self, context: Any) -> None:
        """Give a context that does not allocate memory for its work; contexts that run one after the other share it."""
        if not lends_memory(self._module):
            return
        size = max(1, int(self._engine.device_memory_size_v2))
        if not self._workspace:
            self._workspace = self._cuda.allocate(size)
        context.set_device_memory(self._workspace, size)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream):
            raise BuildError("TensorRT did not take the engine's work")

    def _profiled(self) -> dict[str, float]:
        """Return the median milliseconds of each layer over some runs in a context of their own."""
        profiler = new_profiler(self._module)
        context = new_context(self._module, self._engine)
        if context is None:
            raise BuildError("the runtime makes no second context, as where memory is short")
        for name, (address, array) in self._buffers.items():
            if name in self._input_names:
                context.set_input_shape(name, array.shape)
            context.set_tensor_address(name, address)
        self._lend_memory(context)
        context.profiler = profiler
        for _ in range(_PROFILED_RUNS):
            if not context.execute_async_v3(self._cuda.stream):
                raise BuildError("TensorRT did not take the engine's work")
            self._cuda.synchronize()
        return {name: statistics.median(times) for name, times in profiler.times.items()}

    def _free(self) -> None:
        for address, _ in self._buffers.values():
            self._cuda.free(address)
        self._buffers.clear()
        if self._workspace:
            self._cuda.free(self._workspace)
        self._workspace = 0
