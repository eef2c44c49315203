"""Build a TensorRT or TensorRT-RTX plan from an ONNX file: strongly typed, and only once."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from deploy.runner.blame import nodes_named
from deploy.runner.errors import DeviceError
from deploy.runner.experiment import model_sha256
from deploy.runner.gpu import Gpu
from deploy.runner.plan_cache import (
    BuiltPlan,
    Origin,
    PlanTensor,
    find_plan,
    keep_plan,
)
from deploy.runner.trt_log import TRT_RUNTIMES, TrtLog, trt_logged
from deploy.runner.trt_timing import save_timing_cache, set_timing_cache, timing_cache_file

_NUMPY_TYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}

AVERAGED_TIMINGS = 8
"""How often TensorRT times a kernel before it chooses one: trtexec's own number (`--avgTiming`); the builder's is 1."""

# Only a warning of the parser, but the engine would not compute what the file says.
_READ_AS_INT8 = re.compile(r"UINT8 zero_point.*Defaulting to INT8")
_ORIGIN = re.compile(r"\[ONNX Layer: (.*)\]")
# What is worth keeping of a verbose log, which may be many megabytes: the list of kernels, the size of the weights.
_KEPT = re.compile(r"Layers:\n|.*Total Weights Memory: ")


@dataclass(frozen=True)
class TrtSettings:
    """How to build.

    1. `runtime` is one of `TRT_RUNTIMES`.
    2. `batch_sizes` are the smallest, the usual and the largest batch, for inputs whose first dimension is free.
       `sizes` are the least, the usual and the most sizes of one sample, by input, where others are free.
    3. `workspace_mb` is the most memory that a kernel may take for its work, in MiB; None leaves it to the runtime.
    4. `compute_capability`, as in "sm86", is for tensorrt-rtx, which builds for other GPUs than the one it runs on.
    """

    runtime: str
    batch_sizes: tuple[int, int, int] | None = None
    sizes: Mapping[str, Sequence[Sequence[int]]] | None = None
    workspace_mb: int | None = None
    compute_capability: str | None = None

    @classmethod
    def from_json(cls, runtime: str, data: Mapping[str, Any]) -> TrtSettings:
        """Read the settings of a candidate, each of which may be left out; DeviceError when one is unknown."""
        known = [field.name for field in fields(cls) if field.name != "runtime"]
        unknown = sorted(set(data) - set(known))
        if unknown:
            raise DeviceError(
                f"{runtime} has no setting {', '.join(unknown)}: use {', '.join(known)}, or write the experiment again"
            )
        sizes = data.get("batch_sizes")
        return cls(runtime, **{**data, "batch_sizes": tuple(sizes) if sizes is not None else None})


def build(
    module: ModuleType, onnx: Path, settings: TrtSettings, cache: Path | None = None, gpu: Gpu | None = None
) -> BuiltPlan:
    """Build an ONNX file, or take the plan from the directory `cache` if the same was built before.

    The same means: file, settings, runtime, its version and `gpu`, None where there is none. The measured times of
    kernels are kept in `cache` as well, except by TensorRT-RTX, which measures none. Raises BuildError when the file
    does not parse or build, DeviceError when the runtime does not know the compute capability.
    """
    origin = _origin(module, onnx, settings, gpu)
    found = find_plan(cache, origin) if cache is not None else None
    if found is not None:
        return found
    measured = TRT_RUNTIMES[settings.runtime].measures
    timing = timing_cache_file(cache, origin) if cache is not None and measured else None
    with trt_logged(module) as log:
        builder = module.Builder(log.logger)
        network, _parser = make_network(module, builder, onnx, log)  # the network points into the parser's memory
        config = make_config(module, builder, network, settings, log)
        _times = set_timing_cache(config, timing) if timing is not None else None  # the configuration points to it
        told, start = len(log.messages), time.perf_counter()
        serialized = builder.build_serialized_network(network, config)
        seconds = time.perf_counter() - start
        if serialized is None:
            # a timing cache that was rejected is an error in the log too, and not the reason
            failed = log.failed([message.text for message in log.messages[told:] if message.severity.endswith("ERROR")])
            failed.nodes = nodes_named(failed.reason, onnx_nodes(network))
            raise failed
        built = BuiltPlan(
            content=bytes(serialized),
            origin=origin,
            seconds=round(seconds, 3),
            flags=(
                "STRONGLY_TYPED",
                *(name for name, flag in module.BuilderFlag.__members__.items() if config.get_flag(flag)),
            ),
            messages=tuple(entry for entry in log.messages if entry.severity != "VERBOSE" or _KEPT.match(entry.text)),
            inputs=tuple(_described(network.get_input(index)) for index in range(network.num_inputs)),
            outputs=tuple(_described(network.get_output(index)) for index in range(network.num_outputs)),
            timing_cache_sha256=save_timing_cache(config, timing) if timing is not None else None,
            from_cache=False,
        )
    if cache is not None:
        keep_plan(cache, built)
    return built


def for_gpu(module: ModuleType, settings: TrtSettings, gpu: Gpu) -> TrtSettings:
    """Return the settings for engines that run on `gpu`: TensorRT-RTX is told its compute capability, where it knows
    that one.

    What is timed is then what is shipped. Without one it builds a plan for several GPUs, which is another engine.
    """
    known = getattr(module, "ComputeCapability", None)
    others = TRT_RUNTIMES[settings.runtime].builds_for_others
    if not others or settings.compute_capability is not None or known is None:
        return settings
    return replace(settings, compute_capability=gpu.sm) if gpu.sm.upper() in known.__members__ else settings


def make_network(module: ModuleType, builder: Any, onnx: Path, log: TrtLog) -> tuple[Any, Any]:
    """Parse an ONNX file into a strongly typed network; returns it and its parser, which has to live as long.

    Raises BuildError with the parser's errors and the nodes they are about, DeviceError where the runtime has no such
    networks.
    """
    # The flag of TensorRT 10; TensorRT 11 and TensorRT-RTX accept it and know no other kind of network.
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    if flag is None:
        raise DeviceError(
            f"{module.__name__} {module.__version__} is too old, its networks are not strongly typed: install 10.3 or "
            "later, which a Jetson has from JetPack 6.1 on"
        )
    network = builder.create_network(1 << int(flag))
    parser = module.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(onnx)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        texts = [f"{error.node_operator()} {error.node_name()}: {error.desc()}".removeprefix(" : ") for error in errors]
        raise log.failed(texts, [error.node_name() for error in errors if error.node_name()])
    if any(_READ_AS_INT8.search(message.text) for message in log.messages):
        raise log.failed(["the file quantises to UINT8, which would be read as INT8 and cut off at 127: use INT8"])
    return network, parser


def make_config(module: ModuleType, builder: Any, network: Any, settings: TrtSettings, log: TrtLog) -> Any:
    """Return the builder's configuration: layer information in full, and no flag for types, since the network's are the
    engine's.

    Raises BuildError when the shape of an input is free and the sizes do not settle it, DeviceError for a
    compute capability that the runtime does not know.
    """
    config = builder.create_builder_config()
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if hasattr(module.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # without it TensorRT-RTX allocates at run time, which no graph captures
        config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if TRT_RUNTIMES[settings.runtime].measures:
        config.avg_timing_iterations = AVERAGED_TIMINGS
    if settings.workspace_mb is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, settings.workspace_mb << 20)
    if settings.compute_capability is not None:
        sm = compute_capability(module, settings.runtime, settings.compute_capability)
        config.num_compute_capabilities = 1
        config.set_compute_capability(sm, 0)
    free = _set_free_dimensions(builder, network, config, settings)
    if free:
        raise log.failed([f"the shape of input {free!r} is free: export it with a fixed shape or give the sizes"])
    return config


def compute_capability(module: ModuleType, runtime: str, name: str) -> Any:
    """Return the runtime's own constant for a name as "sm86"; DeviceError when it has none."""
    known = getattr(module, "ComputeCapability", None)
    if known is None:
        raise DeviceError(f"{runtime} builds for the GPU of the machine it runs on and takes no compute capability")
    value = known.__members__.get(name.upper()) if name.upper().startswith("SM") else None
    if value is None:
        names = ", ".join(member.lower() for member in known.__members__ if member.startswith("SM"))
        raise DeviceError(f"unknown compute capability {name!r} for {runtime}: it builds for {names}")
    return value


def onnx_nodes(network: Any) -> list[str]:
    """Return the names of the ONNX nodes of a network, in its order; a layer's metadata tells which node it is of."""
    origins = (_ORIGIN.search(network.get_layer(index).metadata) for index in range(network.num_layers))
    return list(dict.fromkeys(origin[1] for origin in origins if origin))


def _set_free_dimensions(builder: Any, network: Any, config: Any, settings: TrtSettings) -> str:
    """Add an optimisation profile for free dimensions; return the name of an input that stays free, or an empty
    string.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    free = [tensor for tensor in inputs if any(size < 0 for size in tensor.shape)]
    ranges = {str(tensor.name): _ranges(tensor, settings) for tensor in free}
    for name, shapes in ranges.items():
        if any(size < 0 for shape in shapes for size in shape):
            return name
    if free:
        profile = builder.create_optimization_profile()
        for name, shapes in ranges.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
    return ""


def _ranges(tensor: Any, settings: TrtSettings) -> list[tuple[int, ...]]:
    """Return the smallest, the usual and the largest shape of an input; what is not known stays negative."""
    batch, *others = tuple(tensor.shape)
    batches = settings.batch_sizes if batch < 0 and settings.batch_sizes is not None else (batch,) * 3
    sizes = (settings.sizes or {}).get(str(tensor.name), (others,) * 3)
    return [(count, *shape) for count, shape in zip(batches, sizes, strict=True)]


def _origin(module: ModuleType, onnx: Path, settings: TrtSettings, gpu: Gpu | None) -> Origin:
    values = asdict(settings)
    return Origin(values.pop("runtime"), str(module.__version__), values, model_sha256(onnx), gpu)


def _described(tensor: Any) -> PlanTensor:
    name = str(tensor.dtype).rsplit(".", 1)[-1]  # an enumeration's member, as in DataType.HALF
    return PlanTensor(tensor.name, _NUMPY_TYPES.get(name, name.lower()), tuple(tensor.shape))
