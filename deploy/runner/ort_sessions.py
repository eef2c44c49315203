"""Sessions of ONNX Runtime with fixed inputs, as they are timed: fed from the host, or bound to memory of the GPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

CPU_TIME = "thread CPU time"
ORT_TYPES = {"float32": "float", "float64": "double"}
"""ONNX Runtime's names of types that numpy calls otherwise."""
_GRAPH_OF_A_CALL, _NO_GRAPH = "gpu_graph_id", "-1"


class FedSession:
    """A session on the CPU with its inputs. One thread is timed by its CPU time, which leaves out what other processes
    take.
    """

    def __init__(self, session: Any, inputs: Mapping[str, np.ndarray], clock: str) -> None:
        """Run once, so that a model that cannot run is found here."""
        self.clock = clock
        self._session = session
        self._now = time.thread_time_ns if clock == CPU_TIME else time.perf_counter_ns
        self._feeds = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        self.run()

    def run(self) -> None:
        """Run once."""
        self._session.run(None, self._feeds)

    def time(self, repeats: int) -> float:
        """Run `repeats` times; returns the mean milliseconds of a call."""
        start = self._now()
        for _ in range(repeats):
            self.run()
        return (self._now() - start) / repeats / 1e6

    def outputs(self) -> dict[str, np.ndarray]:
        """Run once; returns the outputs by name."""
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(None, self._feeds), strict=True))

    def layers(self) -> tuple[list[dict[str, Any]] | None, str | None]:
        """Nothing: ONNX Runtime names its kernels in the optimised graph, which is read where the engine is built."""
        return None, None

    def close(self) -> None:
        """Let go of the session and its inputs."""
        self._session = None
        self._feeds = {}


class BoundSession(FedSession):
    """A session whose inputs and outputs stay on `place` ("cuda"). Timed by the wall clock; a call ends when the GPU is
    done.

    `captured`: the session was made for a CUDA graph, as which a call is launched until `use_graph` says otherwise.
    """

    warm_up_ms = 200.0

    def __init__(self, session: Any, inputs: Mapping[str, np.ndarray], place: str, *, captured: bool = False) -> None:
        """Run, and with `captured` record the graph; what ONNX Runtime raises when that fails leaves the session
        unusable.
        """
        import onnxruntime as ort

        self.captured = captured
        self.gpu: dict[str, Any] | None = None
        self._without_graph = ort.RunOptions()
        self._without_graph.add_run_config_entry(_GRAPH_OF_A_CALL, _NO_GRAPH)
        self._binding = session.io_binding()
        self._values = {
            name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), place) for name, array in inputs.items()
        }
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
        shapes = _output_shapes(session, inputs)
        for output in session.get_outputs():
            shape, dtype = shapes[output.name], _numpy_type(output.type)
            if shape is None or dtype is None:
                self._binding.bind_output(output.name, place)
            else:  # a graph writes to the addresses that it was recorded with
                value = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, place)
                self._values[output.name] = value
                self._binding.bind_ortvalue_output(output.name, value)
        self.use_graph(captured)
        super().__init__(session, inputs, self.clock)

    def run(self) -> None:
        """Run once, and wait for the end."""
        self._session.run_with_iobinding(self._binding, self._options)
        self._binding.synchronize_outputs()

    def use_graph(self, on: bool) -> None:
        """Launch the CUDA graph from now on, or each operator by itself; without a graph it is always that."""
        self._options = None if on or not self.captured else self._without_graph
        self.clock = f"wall clock, each call synchronised, {'CUDA graph' if on and self.captured else 'no CUDA graph'}"

    def enqueue_ms(self) -> float | None:
        """None: a call of ONNX Runtime returns when the GPU is done."""
        return None

    def hot_and_cold_ms(self) -> tuple[float, float] | None:
        """None: nothing here writes over the L2 cache between two calls."""
        return None

    def outputs(self) -> dict[str, np.ndarray]:
        """Run once; returns the outputs by name."""
        self.run()
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._binding.copy_outputs_to_cpu(), strict=True))

    def close(self) -> None:
        """Let go of the session, its inputs and its outputs."""
        super().close()
        self._binding = None
        self._values = {}


def outputs_known(session: Any, inputs: Mapping[str, np.ndarray]) -> bool:
    """Whether shapes and types of all outputs follow from those of the inputs, so that they can lie at fixed
    addresses.
    """
    shapes = _output_shapes(session, inputs)
    return all(
        shapes[output.name] is not None and _numpy_type(output.type) is not None for output in session.get_outputs()
    )


def _output_shapes(session: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, list[int] | None]:
    """Return the shapes of the outputs: a free dimension is as large as that of the same name of an input; None where
    there is none.
    """
    sizes: dict[Any, int] = {}
    for entry in session.get_inputs():
        sizes.update(zip(entry.shape, inputs[entry.name].shape, strict=True))
    shapes: dict[str, list[int] | None] = {}
    for output in session.get_outputs():
        known = [size if isinstance(size, int) else sizes.get(size) for size in output.shape]
        shapes[output.name] = (
            [size for size in known if size is not None] if None not in known and None not in output.shape else None
        )
    return shapes


def _numpy_type(text: str) -> np.dtype[Any] | None:
    """Return numpy's type for one as ONNX Runtime writes it, "tensor(float)"; None where numpy has none, as for
    bfloat16.
    """
    name = text.removeprefix("tensor(").removesuffix(")")
    try:
        return np.dtype({ort: numpy for numpy, ort in ORT_TYPES.items()}.get(name, name))
    except TypeError:
        return None
