"""ONNX Runtime: an ONNX file in a session with the settings of its record, on fixed inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from deploy.runner.causes import REFUSED, failure_of
from deploy.runner.errors import BuildError, DeviceError
from deploy.runner.ort_gpu import (
    ORT_CPU,
    ORT_TENSORRT,
    about_the_machine,
    cache_places,
    load_gpu_libraries,
    provider_options,
    why_missing,
    with_kept_engine,
)
from deploy.runner.ort_sessions import CPU_TIME, ORT_TYPES, BoundSession, FedSession, outputs_known

_ERRORS_ONLY = 3
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
_PROBE_TAIL = bytes.fromhex(
    "5a130a0178120e0a0c080212080a0208010a02084062130a0179120e0a0c080612080a0208010a02081042040a001015"
)


@cache
def integer_sums_overflow() -> bool:
    """Whether this CPU's integer kernels overflow with 8-bit weights, found by multiplying the largest numbers there
    are.

    x86 without VNNI sums two products in 16 bits, where 255 * 127 * 2 does not fit.
    """
    import onnxruntime as ort

    probe = _PROBE_HEAD + bytes([_LARGEST]) * (_INNER * _OUTER) + _PROBE_TAIL
    session = ort.InferenceSession(probe, providers=[ORT_CPU])
    (result,) = session.run(None, {"x": np.full((1, _INNER), 255, np.uint8)})
    return bool((result != 255 * _LARGEST * _INNER).any())


def open_session(
    model: Path,
    settings: Mapping[str, Any],
    *,
    providers: Sequence[Any] | None = None,
    optimized: Path | None = None,
    threads: int | None = None,
) -> Any:
    """Create a session with the settings of an engine's record; `optimized` is where to write the graph that really
    runs.

    Where integer kernels overflow, the exact ones are taken, also for an engine that was made elsewhere. `providers`
    are those of the settings with further options, `threads` replaces the number of threads. Raises DeviceError when a
    setting is missing, when this machine has to be changed, or when the session would leave out one of the providers;
    otherwise what ONNX Runtime raises.
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
    providers = provider_options(settings["providers"] if providers is None else providers)
    wanted = [_name(provider) for provider in providers]
    _check_providers(wanted, ort.get_available_providers())
    if wanted != [ORT_CPU]:
        load_gpu_libraries(tensorrt=ORT_TENSORRT in wanted)
    disabled = list(settings["disabled_optimizers"])
    try:
        # without `enable_fallback=0` a session that fails is made again with other providers, and the reason is only
        # printed
        session = ort.InferenceSession(
            str(model), options, providers=providers, disabled_optimizers=disabled, enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        _raise_if_of_the_machine(error, wanted)
        raise
    # ONNX Runtime goes on without a provider whose libraries do not load.
    _check_providers(wanted, session.get_providers())
    return session


def open_ort_engine(
    model: Path, settings: Mapping[str, Any], inputs: Mapping[str, np.ndarray], cache: Path
) -> FedSession:
    """Open an ONNX file, and run it once. The TensorRT provider keeps its engines and the times of its kernels below
    `cache`.

    Raises BuildError when ONNX Runtime refuses the model, DeviceError when it lacks a provider, or when the inputs do
    not fit.
    """
    names = [_name(provider) for provider in settings.get("providers", ())]
    try:
        if names in ([ORT_CPU], []):
            session = open_session(model, settings)
            _check_inputs(session.get_inputs(), inputs)
            one_thread = settings["intra_op_num_threads"] == settings["inter_op_num_threads"] == 1
            return FedSession(session, inputs, CPU_TIME if one_thread else "wall clock")
        if ORT_TENSORRT not in names:
            return _open_bound(model, settings, inputs)
        load_gpu_libraries(tensorrt=True)
        place, timing = cache_places(model, settings, cache)
        timing.mkdir(parents=True, exist_ok=True)
        return with_kept_engine(place, partial(_open_bound, model, settings, inputs, place, timing))
    except DeviceError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        _raise_if_of_the_machine(error, names)
        if failure_of(error).cause != REFUSED:
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BuildError(lines[0], str(error)) from error


def _open_bound(
    model: Path,
    settings: Mapping[str, Any],
    inputs: Mapping[str, np.ndarray],
    place: Path | None = None,
    timing: Path | None = None,
) -> BoundSession:
    """Open a session on the GPU as one CUDA graph; without one where shapes are not known or the providers cannot make
    one.
    """
    names = [_name(provider) for provider in settings["providers"]]
    for graph in (True, False):
        providers = provider_options(settings["providers"], place, timing, graph=graph)
        try:
            session = open_session(model, settings, providers=providers)
            _check_inputs(session.get_inputs(), inputs)
            if graph and not outputs_known(session, inputs):
                session = None  # its memory is wanted for the next one
                continue
            return BoundSession(session, inputs, "cuda", captured=graph)
        except DeviceError:
            raise
        except Exception as error:
            _raise_if_of_the_machine(error, names)
            if not graph or failure_of(error).cause != REFUSED:
                raise
            # An operator on the CPU, or one that CUDA does not capture. If the model is at fault, the second attempt
            # tells.
    raise AssertionError("the second attempt returns or raises")


def _check_inputs(wanted: Sequence[Any], inputs: Mapping[str, np.ndarray]) -> None:
    """Raise DeviceError when the inputs are not those of the model, which says nothing about the model."""
    if {entry.name for entry in wanted} != set(inputs):
        raise DeviceError(
            f"the model takes the inputs {', '.join(e.name for e in wanted)}, and was given "
            f"{', '.join(inputs) or 'none'}"
        )
    for entry in wanted:
        given = inputs[entry.name]
        fixed = [size if isinstance(size, int) else None for size in entry.shape]
        fits = len(fixed) == given.ndim and all(
            size in (None, there) for size, there in zip(fixed, given.shape, strict=True)
        )
        if not fits or entry.type != f"tensor({ORT_TYPES.get(given.dtype.name, given.dtype.name)})":
            raise DeviceError(
                f"input {entry.name!r} is {given.dtype} {given.shape}, and the model takes {entry.type} "
                f"{tuple(entry.shape)}: "
                "write the experiment again"
            )


def _name(provider: Any) -> str:
    """Return the name of a provider, which may come with options as a pair."""
    return str(provider if isinstance(provider, str) else provider[0])


def _raise_if_of_the_machine(error: Exception, providers: Sequence[str]) -> None:
    """Raise DeviceError for what is no fault of the model: a driver, a library, an option."""
    reason = about_the_machine(error, providers) if list(providers) != [ORT_CPU] else None
    if reason is not None:
        raise DeviceError(reason) from error


def _check_providers(wanted: list[str], found: list[str]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DeviceError(why_missing(missing))
