"""Build a plan from an ONNX file."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from calib.errors import UserError
from deploy.backends.tensorrt.kernels import Kernel, kernels_from_log
from deploy.backends.tensorrt.runtime import Message, load, logged

SCHEMA_VERSION = 1

_WEIGHTS_MEMORY = re.compile(r"Total Weights Memory: (\d+) bytes")
# Printed with any error where there is no GPU, and never its cause: building needs none.
_DRIVER_NOISE = re.compile(r"CUDA driver version is insufficient|Error Code 1: Cuda Runtime \(\s*\)")
# Only a warning of the parser, but the engine would not compute what the file says.
_READ_AS_INT8 = re.compile(r"UINT8 zero_point.*Defaulting to INT8")


@dataclass(frozen=True)
class BuildRecord:
    """What a plan was built from, with what, and what came out.

    1. `compute_capability` is None when none was asked for: TensorRT builds for the GPU of the machine, TensorRT-RTX for all.
    2. `weights_memory_bytes` is the builder's own figure and the one to compare sizes by: the code of the kernels can be most of
       `plan_bytes` of a small network. It is None when the builder did not say.
    3. `kernels` is empty when the builder's log held no list of kernels that could be read; a warning then says so.
    """

    runtime: str
    runtime_version: str
    compute_capability: str | None
    flags: tuple[str, ...]
    seconds: float
    plan_bytes: int
    weights_memory_bytes: int | None
    onnx_sha256: str
    plan_sha256: str
    warnings: tuple[str, ...]
    kernels: tuple[Kernel, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a plain mapping with a schema version."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        lists = {
            "flags": list(self.flags),
            "warnings": list(self.warnings),
            "kernels": [kernel.to_json() for kernel in self.kernels],
        }
        return {"schema_version": SCHEMA_VERSION, **plain, **lists}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BuildRecord:
        """Read back `to_json`; raises UserError when a field is missing or the schema version is another."""
        if data.get("schema_version") != SCHEMA_VERSION:
            raise UserError(f"build record of schema version {data.get('schema_version')!r}, not {SCHEMA_VERSION}: build again")
        try:
            fields = {name: data[name] for name in cls.__dataclass_fields__}
            kernels = tuple(Kernel.from_json(kernel) for kernel in fields["kernels"])
        except (KeyError, TypeError) as error:
            raise UserError(f"damaged build record ({error!r}): build again") from error
        return cls(**{**fields, "flags": tuple(fields["flags"]), "warnings": tuple(fields["warnings"]), "kernels": kernels})


@dataclass(frozen=True)
class BuildFailed:
    """The runtime refused the file: the reason in its own words, and everything it had to say."""

    reason: str
    log: str

    def to_json(self) -> dict[str, Any]:
        """Return a plain mapping with a schema version."""
        return {"schema_version": SCHEMA_VERSION, "reason": self.reason, "log": self.log}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BuildFailed:
        """Read back `to_json`; raises UserError when it is something else."""
        if data.get("schema_version") != SCHEMA_VERSION or not {"reason", "log"} <= data.keys():
            raise UserError(f"not a failed build of schema version {SCHEMA_VERSION}")
        return cls(data["reason"], data["log"])


def build_plan(
    onnx: Path,
    plan: Path,
    runtime: str,
    compute_capability: str | None = None,
    *,
    batch_sizes: tuple[int, int, int] | None = None,
) -> BuildRecord | BuildFailed:
    """Build `onnx` into `plan` with `runtime`, one of `RUNTIMES`, and return the record of it.

    `compute_capability` (as in `sm86`) is for tensorrt-rtx, which needs no GPU to build. `batch_sizes` are the smallest, the usual and
    the largest batch, for inputs whose first dimension is free. A file that does not parse or build is a `BuildFailed`, and then `plan`
    is left as it was. Raises UserError when `onnx` is missing, the runtime is not installed or does not know the compute capability.
    """
    module = load(runtime)
    if not onnx.is_file():
        raise UserError(f"no such ONNX file: {onnx}")
    capability = _compute_capability(module, runtime, compute_capability)
    with logged(module) as (logger, messages):
        builder = module.Builder(logger)
        # The flag of TensorRT 10; TensorRT 11 and TensorRT-RTX accept it and know no other kind of network.
        network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = module.OnnxParser(network, logger)
        if not parser.parse_from_file(str(onnx)):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            return _failed(
                [f"{error.node_operator()} {error.node_name()}: {error.desc()}".removeprefix(" : ") for error in errors], messages
            )
        if any(_READ_AS_INT8.search(message.text) for message in messages):
            return _failed(["the file quantises to UINT8, which would be read as INT8 and cut off at 127: use INT8"], messages)
        config = builder.create_builder_config()
        config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
        if capability is not None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(capability, 0)
        free = _set_free_dimensions(builder, network, config, batch_sizes)
        if free:
            return _failed([f"the shape of input {free!r} is free: export it with a fixed shape or give the batch sizes"], messages)
        start = time.perf_counter()
        serialized = builder.build_serialized_network(network, config)
        seconds = time.perf_counter() - start
        if serialized is None:
            return _failed([message.text for message in messages if message.severity.endswith("ERROR")], messages)
        content = bytes(serialized)
        kernels, warnings = _kernels_and_warnings(messages)
        weights_memory = [match for message in messages if (match := _WEIGHTS_MEMORY.search(message.text))]
        record = BuildRecord(
            runtime=runtime,
            runtime_version=module.__version__,
            compute_capability=compute_capability.lower() if compute_capability is not None else None,
            flags=("STRONGLY_TYPED", *_flags_of_config(module, config)),
            seconds=round(seconds, 3),
            plan_bytes=len(content),
            weights_memory_bytes=int(weights_memory[-1][1]) if weights_memory else None,
            onnx_sha256=hashlib.sha256(onnx.read_bytes()).hexdigest(),
            plan_sha256=hashlib.sha256(content).hexdigest(),
            warnings=warnings,
            kernels=kernels,
        )
    plan.parent.mkdir(parents=True, exist_ok=True)
    unfinished = plan.with_name(f"{plan.name}.unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(plan)
    return record


def _compute_capability(module: ModuleType, runtime: str, name: str | None) -> Any:
    """Return the runtime's own constant, or None for none."""
    if name is None:
        return None
    known = getattr(module, "ComputeCapability", None)
    if known is None:
        raise UserError(f"{runtime} builds for the GPU of the machine it runs on and takes no compute capability")
    value = known.__members__.get(name.upper()) if name.upper().startswith("SM") else None
    if value is None:
        names = ", ".join(member.lower() for member in known.__members__ if member.startswith("SM"))
        raise UserError(f"unknown compute capability {name!r} for {runtime}: it builds for {names}")
    return value


def _set_free_dimensions(builder: Any, network: Any, config: Any, batch_sizes: tuple[int, int, int] | None) -> str:
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


def _failed(errors: Sequence[str], messages: Sequence[Message]) -> BuildFailed:
    # An error may be several lines, of which the line about the driver is one.
    lines = [line.strip() for error in errors for line in error.splitlines()]
    telling = [line for line in lines if line and not _DRIVER_NOISE.search(line)]
    log = "\n".join(f"{message.severity}: {message.text}" for message in messages if message.severity not in ("VERBOSE", "INFO"))
    return BuildFailed(" | ".join(dict.fromkeys(telling)) or "the runtime gave no reason", log)


def _flags_of_config(module: ModuleType, config: Any) -> list[str]:
    return [name for name, flag in module.BuilderFlag.__members__.items() if config.get_flag(flag)]


def _kernels_and_warnings(messages: Sequence[Message]) -> tuple[tuple[Kernel, ...], tuple[str, ...]]:
    warnings = [message.text.strip() for message in messages if message.severity == "WARNING"]
    kernels: tuple[Kernel, ...] = ()
    try:
        kernels = kernels_from_log(message.text for message in messages)
    except ValueError as error:
        # The plan is good; only the check against the policy has to do without.
        warnings.append(str(error))
    if not kernels:
        warnings.append("the builder's log holds no list of kernels: the plan cannot be checked against the policy")
    return kernels, tuple(dict.fromkeys(warnings))
