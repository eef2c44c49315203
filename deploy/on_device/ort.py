"""ONNX Runtime: an ONNX file in a session with the settings of its record, on fixed inputs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from deploy.on_device.causes import REFUSED, failure_of
from deploy.on_device.errors import BuildFailed, DeviceError

_ERRORS_ONLY = 3
_CPU_TIME = "thread CPU time"
_CPU = "CPUExecutionProvider"
_ORT_TYPES = {"float32": "float", "float64": "double"}
"""ONNX Runtime's names of types that numpy calls otherwise."""
SESSION_SETTINGS = (
    "providers",
    "graph_optimization_level",
    "disabled_optimizers",
    "session_config",
    "intra_op_num_threads",
    "inter_op_num_threads",
)
NO_OVERFLOW = "session.x64quantprecision"
_LARGEST, _INNER, _OUTER = 127, 64, 16
# ONNX: y = MatMulInteger(x, w) with a weight [64, 16] of the largest 8-bit numbers, which stands between the two parts.
_PROBE_HEAD = bytes.fromhex(
    "080a12003ada080a180a01780a0177120179220d4d61744d756c496e7465676572120570726f62652a8c080840081010034201774a8008"
)
_PROBE_TAIL = bytes.fromhex("5a130a0178120e0a0c080212080a0208010a02084062130a0179120e0a0c080612080a0208010a02081042040a001015")


@cache
def integer_sums_overflow() -> bool:
    """Whether this CPU's integer kernels overflow with 8-bit weights, found by multiplying the largest numbers there are.

    x86 without VNNI sums two products in 16 bits, where 255 * 127 * 2 does not fit.
    """
    import onnxruntime as ort

    probe = _PROBE_HEAD + bytes([_LARGEST]) * (_INNER * _OUTER) + _PROBE_TAIL
    session = ort.InferenceSession(probe, providers=[_CPU])
    (result,) = session.run(None, {"x": np.full((1, _INNER), 255, np.uint8)})
    return bool((result != 255 * _LARGEST * _INNER).any())


def open_session(model: Path, settings: Mapping[str, Any], *, optimized: Path | None = None, threads: int | None = None) -> Any:
    """Create a session with the settings of an engine's record; `optimized` is where to write the graph that really runs.

    Where integer kernels overflow, the exact ones are taken, also for an engine that was made elsewhere.
    `threads` replaces the number of threads. Raises DeviceError when a setting is missing, or when the session would leave out one of the
    providers that were asked for; otherwise what ONNX Runtime raises.
    """
    import onnxruntime as ort

    missing = [name for name in SESSION_SETTINGS if name not in settings]
    if missing:
        raise DeviceError(f"the settings of {model.name} lack {', '.join(missing)}: write the experiment again")
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, settings["graph_optimization_level"])
    options.intra_op_num_threads = threads or settings["intra_op_num_threads"]
    options.inter_op_num_threads = settings["inter_op_num_threads"]
    config = dict(settings["session_config"])
    if integer_sums_overflow():  # perhaps not where the settings were written
        config[NO_OVERFLOW] = "1"
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    wanted = [_name(provider) for provider in settings["providers"]]
    _check_providers(wanted, ort.get_available_providers())
    providers = [provider if isinstance(provider, str) else tuple(provider) for provider in settings["providers"]]
    session = ort.InferenceSession(
        str(model), options, providers=providers, disabled_optimizers=list(settings["disabled_optimizers"])
    )
    # ONNX Runtime goes on without a provider whose libraries do not load.
    _check_providers(wanted, session.get_providers())
    return session


def open_ort_engine(model: Path, settings: Mapping[str, Any], inputs: Mapping[str, np.ndarray], cache: Path) -> FedSession:  # noqa: ARG001
    """Open an ONNX file, and run it once. ONNX Runtime keeps nothing, so `cache` is not used.

    Raises BuildFailed when ONNX Runtime refuses the model, DeviceError when it lacks a provider, or when the inputs do
    not fit.
    """
    try:
        session = open_session(model, settings)
        _check_inputs(session.get_inputs(), inputs)
        names = [_name(provider) for provider in settings["providers"]]
        if names != [_CPU]:
            return BoundSession(session, inputs, "cuda")
        one_thread = settings["intra_op_num_threads"] == settings["inter_op_num_threads"] == 1
        return FedSession(session, inputs, _CPU_TIME if one_thread else "wall clock")
    except DeviceError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        if failure_of(error).cause != REFUSED:
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BuildFailed(lines[0], str(error)) from error


class FedSession:
    """A session on the CPU with its inputs. One thread is timed by its CPU time, which leaves out what other processes take."""

    def __init__(self, session: Any, inputs: Mapping[str, np.ndarray], clock: str) -> None:
        """Run once, so that a model that cannot run is found here."""
        self.clock = clock
        self._session = session
        self._now = time.thread_time_ns if clock == _CPU_TIME else time.perf_counter_ns
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
    """A session whose inputs lie on `place` ("cuda"), where its outputs stay; a call ends when they are there. Timed by the wall clock."""

    def __init__(self, session: Any, inputs: Mapping[str, np.ndarray], place: str) -> None:
        import onnxruntime as ort

        self._binding = session.io_binding()
        self._values = {
            name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), place) for name, array in inputs.items()
        }
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
        for output in session.get_outputs():
            self._binding.bind_output(output.name, place)
        super().__init__(session, inputs, "wall clock, synchronised")

    def run(self) -> None:
        """Run once, and wait for the end."""
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

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


def _check_inputs(wanted: Sequence[Any], inputs: Mapping[str, np.ndarray]) -> None:
    """Raise DeviceError when the inputs are not those of the model, which says nothing about the model."""
    if {entry.name for entry in wanted} != set(inputs):
        raise DeviceError(
            f"the model takes the inputs {', '.join(e.name for e in wanted)}, and was given {', '.join(inputs) or 'none'}"
        )
    for entry in wanted:
        given = inputs[entry.name]
        fixed = [size if isinstance(size, int) else None for size in entry.shape]
        fits = len(fixed) == given.ndim and all(size in (None, there) for size, there in zip(fixed, given.shape, strict=True))
        if not fits or entry.type != f"tensor({_ORT_TYPES.get(given.dtype.name, given.dtype.name)})":
            raise DeviceError(
                f"input {entry.name!r} is {given.dtype} {given.shape}, and the model takes {entry.type} {tuple(entry.shape)}: "
                "write the experiment again"
            )


def _name(provider: Any) -> str:
    """Return the name of a provider, which may come with options as a pair."""
    return str(provider if isinstance(provider, str) else provider[0])


def _check_providers(wanted: list[str], found: list[str]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DeviceError(
            f"onnxruntime lacks {', '.join(missing)} here (it has {', '.join(found)}): install onnxruntime-gpu and the CUDA and cuDNN "
            "libraries that it names"
        )
