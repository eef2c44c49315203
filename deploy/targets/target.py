"""What a target is, and which format is real on which operator there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from calib.errors import UserError
from calib.formats.format import Format
from deploy.targets.families import FAMILIES, Family, Target, devices
from deploy.targets.installed import installed_version, packaged_version
from deploy.targets.rules import FROM_BEST_TO_WORST, OPERATORS, Capability, CapabilityRow, LayerKind, version_fits

__all__ = [
    "Target", "capability", "capability_of", "compute_capabilities_of", "device_names", "table", "target_from_name",
    "versioned_names",
]  # fmt: skip

_FOUR_BITS = 4


def target_from_name(name: str, compute_capabilities: Sequence[str] = (), *, look: bool = True) -> Target:
    """Return a target: one of `FAMILIES`, a family with a version (`tensorrt-10.3`), or a device (`jetson-orin`).

    `compute_capabilities` as in `sm86`; without any, the usual ones of the family. `tensorrt` without a version is the
    one installed on this machine, whose version is unknown if there is none. Without `look` it is not looked for, which
    may load the library.

    Raises UserError that lists the names, or the compute capabilities that the target knows.
    """
    device = devices().get(name)
    family, version = (device["family"], device["version"]) if device else _family_and_version(name, look=look)
    if device:
        own = device["compute_capabilities"]
        if compute_capabilities and [text.strip().lower() for text in compute_capabilities] != own:
            raise UserError(f"{name} is {', '.join(own)}: leave out --sm, or use --target {family}")
        compute_capabilities = own
    found = FAMILIES[family]
    wanted = _checked_compute_capabilities(found, compute_capabilities, version)
    target = replace(found.target, name=name, version=version, compute_capabilities=wanted)
    return replace(target, description=device["description"]) if device else target


def versioned_names() -> tuple[str, ...]:
    """Return the names of families with a version, as in `tensorrt-10.3`."""
    return tuple(f"{name}-{version}" for name, family in FAMILIES.items() for version in family.versions)


def device_names() -> tuple[str, ...]:
    """Return the names of the devices that are targets of their own, as in `jetson-orin`."""
    return tuple(devices())


def compute_capabilities_of(target: Target) -> Mapping[str, str]:
    """Return the compute capabilities that can be asked for with this target, and what the GPUs are called."""
    return FAMILIES[target.family].compute_capabilities


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
    return tuple(
        row for row in FAMILIES[target.family].rows if row.concerns(target.compute_capabilities, target.version)
    )


def _first_fit(target: Target, layer: LayerKind, format_: Format, gpu: tuple[str, ...]) -> Capability:
    outputs = layer.out_features
    odd = format_.weight_bits == _FOUR_BITS and outputs is not None and layer.in_features * outputs % 2 == 1
    for row in FAMILIES[target.family].rows:
        if row.concerns(gpu, target.version) and row.fits(layer, format_):
            if row.even_elements and odd:
                return Capability("refused", "a 4-bit weight needs an even number of elements")
            return Capability(row.status, row.note, row.stored_as, row.may_fail, row.basis == "measured")
    return Capability("refused", f"{format_} has not been measured on {target.name}")


def _family_and_version(name: str, *, look: bool) -> tuple[str, str | None]:
    if name in FAMILIES:
        packages, module = FAMILIES[name].packages, FAMILIES[name].target.runtime
        return name, packaged_version(packages) or installed_version(module, packages) if packages and look else None
    if name not in versioned_names():
        names = (*FAMILIES, *versioned_names(), *device_names())
        raise UserError(f"unknown target {name!r}: write one of {', '.join(names)}")
    family, _, version = name.rpartition("-")
    return family, version


def _checked_compute_capabilities(found: Family, given: Sequence[str], version: str | None) -> tuple[str, ...]:
    family, known = found.target.name, found.compute_capabilities
    if not given:
        return found.target.compute_capabilities
    if not known:
        able = " and ".join(name for name, other in FAMILIES.items() if other.compute_capabilities)
        raise UserError(f"target {family} takes no compute capability: {able} do")
    wanted = tuple(dict.fromkeys(text.strip().lower() for text in given))
    for text in wanted:
        if text not in known:
            raise UserError(f"unknown compute capability {text!r} for {family}: it builds for {', '.join(known)}")
        if version is not None and text in found.since and not version_fits(version, f">={found.since[text]}"):
            raise UserError(f"TensorRT {version} does not know {text}: it came with TensorRT {found.since[text]}")
    if found.one_gpu and len(wanted) > 1:
        raise UserError(f"{family} builds its plan on the GPU itself: give one --sm")
    return wanted
