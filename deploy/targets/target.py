"""What a target is, and which format is real on which operator there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module, metadata
from importlib.resources import files
from typing import Any, Literal, cast

from calib.errors import UserError
from calib.formats.format import Format
from deploy.targets.rules import (
    CONVOLUTIONS,
    FROM_BEST_TO_WORST,
    LINEARS,
    OPERATORS,
    SCHEMA_VERSION,
    Capability,
    CapabilityRow,
    LayerKind,
    version_fits,
)

__all__ = [
    "CONVOLUTIONS",
    "LINEARS",
    "OPERATORS",
    "TARGET_NAMES",
    "Capability",
    "CapabilityRow",
    "LayerKind",
    "Target",
    "capability",
    "capability_of",
    "check_builds_here",
    "compute_capabilities_of",
    "device_names",
    "installed_version",
    "table",
    "target_from_name",
    "versioned_names",
]

ActivationScheme = Literal["affine", "symmetric"]
Lowering = Literal["onnxruntime", "tensorrt", "simulate"]
Runtime = Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]

TARGET_NAMES = ("ort-cpu", "ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx", "simulate")
"""The target families; each has a table in `deploy/targets/capabilities`."""

_FOUR_BITS = 4
_DISTRIBUTIONS = {"tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")}
"""Packages that hold a runtime's Python module, where these are not called as the runtime is."""
_OLDEST_TENSORRT = "10.3"
_EXPORTED_OPSET = 21


@dataclass(frozen=True)
class Target:
    """A device and runtime.

    1. `family` names the capability table, `runtime` the library that builds and loads the engine, and `lowering` the
       form of the ONNX file that it wants (`deploy.lowering.lower`).
    2. `providers`: the execution providers of ONNX Runtime, first choice first; empty for other runtimes.
    3. `reference` is the float format of the engine that everything is compared with, and of what stays float in a
       mixed engine.
    4. `activation_scheme`: `affine` is uint8 with a zero point, `symmetric` is int8 with zero point 0.
    5. `quantize_outputs`: an integer layer also writes an integer tensor, or its kernel is not used.
    6. `quantize_skips`: the residual input of an add is quantised, so that the convolution in front of the add writes
       integers.
    7. `measurable`: an engine can be timed by this version of the tool. Those that need an NVIDIA GPU cannot, yet.
    8. `compute_capabilities`: GPUs that the engine is for, as in `sm86`: tensorrt-rtx builds a plan for each; tensorrt
       builds on the GPU itself, so there is one or, for the GPU of this machine, none.
    9. `version`: version of the runtime that the engine is for, None where it does not matter or is not known.
    10. `newest_opset`: the newest ONNX opset that is written for it; a weight is stored in a type of that opset only where
        its kernel wants the type.
    11. `description`: what it is, for people.
    """

    name: str
    family: str
    runtime: Runtime
    lowering: Lowering
    providers: tuple[str, ...]
    reference: Format
    activation_scheme: ActivationScheme
    quantize_outputs: bool
    quantize_skips: bool
    measurable: bool
    default_formats: tuple[Format, ...]
    compute_capabilities: tuple[str, ...]
    version: str | None
    newest_opset: int
    description: str

    def to_json(self) -> dict[str, Any]:
        """Return what identifies the target; the rest is in the table of its family."""
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "compute_capabilities": list(self.compute_capabilities),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Target:
        """Read back `to_json`; raises UserError for another schema version or an unknown target."""
        if data.get("schema_version") != SCHEMA_VERSION or not isinstance(data.get("name"), str):
            raise UserError(f"not a target of schema version {SCHEMA_VERSION}: {dict(data)!r}")
        return target_from_name(data["name"], data.get("compute_capabilities", ()))


@dataclass(frozen=True)
class _Table:
    """One file of `deploy/targets/capabilities`: the target with its usual compute capabilities, the versions and GPUs
    it is for, the rules.

    `compute_capabilities` maps a name to what the GPU is called, `since` a name to the first version that knows it.
    """

    target: Target
    versions: tuple[str, ...]
    compute_capabilities: Mapping[str, str]
    since: Mapping[str, str]
    rows: tuple[CapabilityRow, ...]


def target_from_name(name: str, compute_capabilities: Sequence[str] = (), *, look: bool = True) -> Target:
    """Return a target: one of `TARGET_NAMES`, a family with a version (`tensorrt-10.3`), or a device (`jetson-orin`).

    `compute_capabilities` as in `sm86`; without any, the usual ones of the family. `tensorrt` without a version is the
    one installed on this machine, whose version is unknown if there is none. Without `look` it is not looked for, which
    may load the library.

    Raises UserError that lists the names, or the compute capabilities that the target knows.
    """
    devices = _devices()
    family, version = (
        (devices[name]["family"], devices[name]["version"]) if name in devices else _family_and_version(name, look=look)
    )
    if name in devices:
        if (
            compute_capabilities
            and [text.strip().lower() for text in compute_capabilities] != devices[name]["compute_capabilities"]
        ):
            raise UserError(
                f"{name} is {', '.join(devices[name]['compute_capabilities'])}: leave out --sm, or use --target "
                f"{family}"
            )
        compute_capabilities = devices[name]["compute_capabilities"]
    found = _table(family)
    wanted = _checked_compute_capabilities(found, compute_capabilities, version)
    target = replace(found.target, name=name, version=version, compute_capabilities=wanted)
    return replace(target, description=devices[name]["description"]) if name in devices else target


def versioned_names() -> tuple[str, ...]:
    """Return the names of families with a version, as in `tensorrt-10.3`."""
    return tuple(f"{family}-{version}" for family in TARGET_NAMES for version in _table(family).versions)


def device_names() -> tuple[str, ...]:
    """Return the names of the devices that are targets of their own, as in `jetson-orin`."""
    return tuple(_devices())


def compute_capabilities_of(target: Target) -> Mapping[str, str]:
    """Return the compute capabilities that can be asked for with this target, and what the GPUs are called."""
    return _table(target.family).compute_capabilities


def check_builds_here(target: Target) -> None:
    """Raise UserError when the engine has to be built on another machine: a plan of TensorRT fits the version that
    built it.
    """
    if target.runtime != "tensorrt" or target.version is None:
        return
    if not version_fits(target.version, f">={_OLDEST_TENSORRT}"):
        raise UserError(f"TensorRT {target.version} is installed here: {_OLDEST_TENSORRT} or a newer one is needed")
    installed = installed_version("tensorrt") or "none"
    wanted = target.version.split(".")
    if installed.split(".")[: len(wanted)] != wanted:
        raise UserError(
            f"{target.name} is TensorRT {target.version}, and {installed} is installed here: its engines are built on "
            "the device "
            "(smpq run --device, or smpq bundle); smpq score, solve and export work here"
        )


def installed_version(runtime: str) -> str | None:
    """Return the version of a TensorRT that loads on this machine, as its module tells; None when there is none.

    A module that is there and does not load has the version of its package. The packages are called tensorrt,
    tensorrt-cu12 or -cu13, and those of Jetson leave no record that Python finds, so only the module can be asked.
    """
    try:
        return str(import_module(runtime).__version__)
    except ModuleNotFoundError:
        return None
    except (ImportError, OSError, RuntimeError, AttributeError):
        return _packaged_version(runtime)


def _packaged_version(runtime: str) -> str | None:
    """Return the version that a runtime's package tells without being loaded; None when no package is found."""
    for name in _DISTRIBUTIONS[runtime]:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def capability(
    target: Target, operator: str, format_: Format, in_features: int, out_features: int | None = None
) -> Capability:
    """Say what becomes of `format_` on an operator of kind `operator` (one of `OPERATORS`, or another, which stays
    float).

    `in_features` is the length of the reduction: inputs of a linear layer, input channels of a group times kernel
    elements of a convolution. `out_features` is the number of scales of a per-channel weight; without it, rules about
    it are left out.
    """
    return capability_of(target, LayerKind(operator, in_features, out_features), format_)


def capability_of(target: Target, layer: LayerKind, format_: Format) -> Capability:
    """Say what becomes of `format_` on a layer. A block has to divide its inputs. With several compute capabilities the
    worst answer counts.
    """
    if layer.operator not in OPERATORS and not format_.is_float:
        return Capability(
            "refused", f"operators of kind {layer.operator} are not quantised: known are {', '.join(OPERATORS)}"
        )
    block = format_.weight_block
    if block is not None and layer.in_features % block:
        # A runtime that infers the block from the number of scales would read them against the wrong weights, without a
        # word.
        return Capability("refused", f"blocks of {block} do not divide the {layer.in_features} inputs")
    gpus: list[tuple[str, ...]] = [(one,) for one in target.compute_capabilities] or [()]
    answers = [_first_fit(target, layer, format_, gpu) for gpu in gpus]
    return max(answers, key=lambda answer: FROM_BEST_TO_WORST.index(answer.status))


def table(target: Target) -> tuple[CapabilityRow, ...]:
    """Return the rules of the target, first match first, without those for other compute capabilities and versions."""
    return tuple(row for row in _table(target.family).rows if row.concerns(target.compute_capabilities, target.version))


def _first_fit(target: Target, layer: LayerKind, format_: Format, gpu: tuple[str, ...]) -> Capability:
    outputs = layer.out_features
    odd = format_.weight_bits == _FOUR_BITS and outputs is not None and layer.in_features * outputs % 2 == 1
    for row in _table(target.family).rows:
        if row.concerns(gpu, target.version) and row.fits(layer, format_):
            if row.even_elements and odd:
                return Capability("refused", "a 4-bit weight needs an even number of elements")
            return Capability(row.status, row.note, row.stored_as, row.may_fail, row.basis == "measured")
    return Capability("refused", f"{format_} has not been measured on {target.name}")


def _family_and_version(name: str, *, look: bool) -> tuple[str, str | None]:
    if name in TARGET_NAMES:
        return name, _packaged_version(name) or installed_version(name) if name == "tensorrt" and look else None
    family, _, version = name.rpartition("-")
    if name not in versioned_names():
        names = (*TARGET_NAMES, *versioned_names(), *device_names())
        raise UserError(f"unknown target {name!r}: write one of {', '.join(names)}")
    return family, version


def _checked_compute_capabilities(found: _Table, given: Sequence[str], version: str | None) -> tuple[str, ...]:
    family, known = found.target.name, found.compute_capabilities
    if not given:
        return found.target.compute_capabilities
    if not known:
        raise UserError(f"target {family} takes no compute capability: tensorrt and tensorrt-rtx do")
    wanted = tuple(dict.fromkeys(text.strip().lower() for text in given))
    for text in wanted:
        if text not in known:
            raise UserError(f"unknown compute capability {text!r} for {family}: it builds for {', '.join(known)}")
        if version is not None and text in found.since and not version_fits(version, f">={found.since[text]}"):
            raise UserError(f"TensorRT {version} does not know {text}: it came with TensorRT {found.since[text]}")
    if found.target.runtime == "tensorrt" and len(wanted) > 1:
        raise UserError(f"{family} builds its plan on the GPU itself: give one --sm")
    return wanted


@cache
def _devices() -> dict[str, dict[str, Any]]:
    data = json.loads((files("deploy.targets") / "capabilities" / "devices.json").read_text("utf-8"))
    devices: dict[str, dict[str, Any]] = data["devices"]
    return devices


@cache
def _table(family: str) -> _Table:
    data = json.loads((files("deploy.targets") / "capabilities" / f"{family}.json").read_text("utf-8"))
    if data["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"capability table of {family} has schema version {data['schema_version']}")
    described = data["target"]
    target = Target(
        name=described["name"],
        family=family,
        runtime=cast("Runtime", described["runtime"]),
        lowering=cast("Lowering", described["lowering"]),
        providers=tuple(described["providers"]),
        reference=Format.from_text(described["reference"]),
        activation_scheme=cast("ActivationScheme", described["activation_scheme"]),
        quantize_outputs=described["quantize_outputs"],
        quantize_skips=described["quantize_skips"],
        measurable=described["measurable"],
        default_formats=tuple(Format.from_text(text) for text in described["default_formats"]),
        compute_capabilities=tuple(data["compute_capabilities"]["usual"]),
        version=None,
        newest_opset=described.get("newest_opset", _EXPORTED_OPSET),
        description=described["description"],
    )
    rows = tuple(CapabilityRow.from_json(row) for row in data["rules"])
    known, since = data["compute_capabilities"]["known"], data["compute_capabilities"]["since"]
    return _Table(target, tuple(data["versions"]), known, since, rows)
