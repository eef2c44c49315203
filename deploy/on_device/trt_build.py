"""Build a TensorRT or TensorRT-RTX plan from an ONNX file: strongly typed, and only once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from deploy.on_device.blame import nodes_named
from deploy.on_device.errors import DeviceError
from deploy.on_device.trt_log import Message, TrtLog, trt_logged

_PLAN_SCHEMA = 1
# Only a warning of the parser, but the engine would not compute what the file says.
_READ_AS_INT8 = re.compile(r"UINT8 zero_point.*Defaulting to INT8")
_ORIGIN = re.compile(r"\[ONNX Layer: (.*)\]")
# What is worth keeping of a log that may be many megabytes: warnings, the list of kernels, the size of the weights.
_KEPT = re.compile(r"Layers:\n|.*Total Weights Memory: ")


@dataclass(frozen=True)
class TrtSettings:
    """How to build.

    1. `runtime` is "tensorrt" or "tensorrt-rtx".
    2. `batch_sizes` are the smallest, the usual and the largest batch, for inputs whose first dimension is free.
    3. `workspace_mb` is the most memory that a kernel may take for its work, in MiB; None leaves it to the runtime.
    4. `compute_capability`, as in "sm86", is for tensorrt-rtx, which builds for other GPUs than the one it runs on.
    """

    runtime: str
    batch_sizes: tuple[int, int, int] | None = None
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


@dataclass(frozen=True)
class BuiltPlan:
    """A serialised engine, how long its build took, the builder flags that were set, and what the builder's log said that matters.

    `timing_cache_sha256` is the hash of the timing cache that the build left behind, None where there is none.
    """

    content: bytes
    seconds: float
    flags: tuple[str, ...]
    messages: tuple[Message, ...]
    timing_cache_sha256: str | None
    from_cache: bool


def build(module: ModuleType, onnx: Path, settings: TrtSettings, cache: Path | None = None, device: str = "") -> BuiltPlan:
    """Build an ONNX file, or take the plan from the directory `cache` if the same was built before.

    The same means: file, settings, runtime, its version and `device`, the name of the GPU, empty where there is none. The measured times
    of kernels are kept in `cache` as well, except by TensorRT-RTX, which measures none. Raises BuildFailed when the file does not parse
    or build, DeviceError when the runtime does not know the compute capability.
    """
    kept = cache / f"{_plan_key(module, onnx, settings, device)}.json" if cache is not None else None
    found = _read_plan(kept) if kept is not None else None
    if found is not None:
        return found
    timing = _timing_cache_path(module, settings, cache, device)
    with trt_logged(module) as log:
        builder = module.Builder(log.logger)
        network, _parser = make_network(module, builder, onnx, log)  # the network points into the parser's memory
        config = make_config(module, builder, network, settings, log)
        if timing is not None:
            _load_timing_cache(config, timing)
        start = time.perf_counter()
        serialized = builder.build_serialized_network(network, config)
        seconds = time.perf_counter() - start
        if serialized is None:
            failed = log.failed()
            failed.nodes = nodes_named(failed.reason, onnx_nodes(network))
            raise failed
        built = BuiltPlan(
            content=bytes(serialized),
            seconds=round(seconds, 3),
            flags=("STRONGLY_TYPED", *(name for name, flag in module.BuilderFlag.__members__.items() if config.get_flag(flag))),
            messages=tuple(entry for entry in log.messages if entry.severity == "WARNING" or _KEPT.match(entry.text)),
            timing_cache_sha256=_save_timing_cache(config, timing) if timing is not None else None,
            from_cache=False,
        )
    if kept is not None:
        _write_plan(kept, built)
    return built


def make_network(module: ModuleType, builder: Any, onnx: Path, log: TrtLog) -> tuple[Any, Any]:
    """Parse an ONNX file into a strongly typed network; returns it and its parser, which has to live as long.

    Raises BuildFailed with the parser's errors and the nodes they are about.
    """
    # The flag of TensorRT 10; TensorRT 11 and TensorRT-RTX accept it and know no other kind of network.
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = module.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(onnx)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        texts = [f"{error.node_operator()} {error.node_name()}: {error.desc()}".removeprefix(" : ") for error in errors]
        raise log.failed(texts, [error.node_name() for error in errors if error.node_name()])
    if any(_READ_AS_INT8.search(message.text) for message in log.messages):
        raise log.failed(["the file quantises to UINT8, which would be read as INT8 and cut off at 127: use INT8"])
    return network, parser


def make_config(module: ModuleType, builder: Any, network: Any, settings: TrtSettings, log: TrtLog) -> Any:
    """Return the builder's configuration: layer information in full, and no flag for types, since the network's are the engine's.

    Raises BuildFailed when the shape of an input is free and the batch sizes do not settle it, DeviceError for a compute capability that
    the runtime does not know.
    """
    config = builder.create_builder_config()
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if hasattr(
        module.BuilderFlag, "REQUIRE_USER_ALLOCATION"
    ):  # without it TensorRT-RTX allocates at run time, which no graph captures
        config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if settings.workspace_mb is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, settings.workspace_mb << 20)
    if settings.compute_capability is not None:
        capability = compute_capability(module, settings.runtime, settings.compute_capability)
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability, 0)
    free = _set_free_dimensions(builder, network, config, settings.batch_sizes)
    if free:
        raise log.failed([f"the shape of input {free!r} is free: export it with a fixed shape or give the batch sizes"])
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


def _set_free_dimensions(builder: Any, network: Any, config: Any, batch_sizes: Sequence[int] | None) -> str:
    """Add an optimisation profile for free batch dimensions; return the name of an input that stays free, or an empty string."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    free = [tensor for tensor in inputs if any(size < 0 for size in tensor.shape)]
    for tensor in free:
        if batch_sizes is None or any(size < 0 for size in tuple(tensor.shape)[1:]):
            return str(tensor.name)
    if free:
        profile = builder.create_optimization_profile()
        for tensor in free:
            profile.set_shape(tensor.name, *((size, *tuple(tensor.shape)[1:]) for size in batch_sizes or ()))
        config.add_optimization_profile(profile)
    return ""


def _plan_key(module: ModuleType, onnx: Path, settings: TrtSettings, device: str) -> str:
    digest = hashlib.sha256(json.dumps([_PLAN_SCHEMA, asdict(settings), module.__version__, device]).encode())
    for file in (onnx, onnx.with_name(f"{onnx.name}.data")):  # the second holds the weights of a large model
        if file.is_file():
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:32]


def _read_plan(file: Path) -> BuiltPlan | None:
    """Return a plan of an earlier build; None when it is not there in full."""
    try:
        kept = json.loads(file.read_text("utf-8"))
        content = file.with_suffix(".plan").read_bytes()
    except (OSError, ValueError):
        return None
    if hashlib.sha256(content).hexdigest() != kept.pop("sha256"):
        return None
    messages = tuple(Message(*entry) for entry in kept.pop("messages"))
    return BuiltPlan(content=content, messages=messages, flags=tuple(kept.pop("flags")), from_cache=True, **kept)


def _write_plan(file: Path, built: BuiltPlan) -> None:
    kept = {
        "seconds": built.seconds,
        "flags": built.flags,
        "messages": built.messages,
        "timing_cache_sha256": built.timing_cache_sha256,
    }
    write_bytes(file.with_suffix(".plan"), built.content)
    write_bytes(file, json.dumps({"sha256": hashlib.sha256(built.content).hexdigest(), **kept}).encode())


def _timing_cache_path(module: ModuleType, settings: TrtSettings, cache: Path | None, device: str) -> Path | None:
    if cache is None or settings.runtime != "tensorrt":
        return None
    digest = hashlib.sha256(f"{module.__version__} {device}".encode()).hexdigest()[:16]
    return cache / f"timing-{digest}.cache"


def _load_timing_cache(config: Any, file: Path) -> None:
    """Give the builder the kernel times of earlier builds; it starts an empty cache when it cannot read them."""
    content = file.read_bytes() if file.is_file() else b""
    timing = config.create_timing_cache(content) or config.create_timing_cache(b"")
    config.set_timing_cache(timing, False)


def _save_timing_cache(config: Any, file: Path) -> str:
    content = bytes(config.get_timing_cache().serialize())
    write_bytes(file, content)
    return hashlib.sha256(content).hexdigest()


def write_bytes(file: Path, content: bytes) -> None:
    """Write to a temporary name in the same directory, then rename: a reader sees all of the file or nothing of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        Path(temporary).chmod(0o644)  # mkstemp makes files that only their owner can read
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
