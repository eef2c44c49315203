"""What a target is, and which format is real on which operator there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal, cast

from calib.errors import UserError
from calib.formats import Format
from smpq.plan import Rules

Status = Literal["native", "dequantized", "refused"]
ActivationScheme = Literal["affine", "symmetric"]
Lowering = Literal["onnxruntime", "tensorrt", "simulate"]
Runtime = Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]

SCHEMA_VERSION = 1
TARGET_NAMES = ("ort-cpu", "tensorrt", "tensorrt-rtx", "simulate")
CONVOLUTIONS = ("conv1d", "depthwise_conv1d", "grouped_conv1d", "conv2d", "depthwise_conv2d", "grouped_conv2d")
LINEARS = ("linear", "linear_nd")
OPERATORS = CONVOLUTIONS + LINEARS

_FROM_BEST_TO_WORST: tuple[Status, ...] = ("native", "dequantized", "refused")
_FOUR_BITS = 4


@dataclass(frozen=True)
class Target:
    """A device and runtime.

    1. `family` names the capability table, `runtime` the library that builds and loads the engine, and `lowering` the form of the
       ONNX file that it wants (`deploy.lower`).
    2. `reference` is the float format of the engine that everything is compared with, and of what stays float in a mixed engine.
    3. `activation_scheme`: `affine` is uint8 with a zero point, `symmetric` is int8 with zero point 0.
    4. `quantize_outputs`: an integer layer also writes an integer tensor, or its kernel is not used.
    5. `quantize_skips`: the residual input of an add is quantised, so that the convolution in front of the add writes integers.
    6. `measurable`: an engine can be timed by this version of the tool. Those that need an NVIDIA GPU cannot, yet.
    7. `compute_capabilities`: one plan is built for each, as in `sm86`; empty where the engine fits any device of its kind.
    """

    name: str
    family: str
    runtime: Runtime
    lowering: Lowering
    reference: Format
    activation_scheme: ActivationScheme
    quantize_outputs: bool
    quantize_skips: bool
    measurable: bool
    default_formats: tuple[Format, ...]
    compute_capabilities: tuple[str, ...]

    @property
    def rules(self) -> Rules:
        """What the runtime wants quantised besides the inputs of integer layers."""
        return Rules(self.activation_scheme, self.quantize_outputs, self.quantize_skips, self.lowering == "onnxruntime")

    def to_json(self) -> dict[str, Any]:
        """Return what identifies the target; the rest is in the table of its family."""
        return {"schema_version": SCHEMA_VERSION, "name": self.name, "compute_capabilities": list(self.compute_capabilities)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Target:
        """Read back `to_json`; raises UserError for another schema version or an unknown target."""
        if data.get("schema_version") != SCHEMA_VERSION or not isinstance(data.get("name"), str):
            raise UserError(f"not a target of schema version {SCHEMA_VERSION}: {dict(data)!r}")
        return target_from_name(data["name"], data.get("compute_capabilities", ()))


@dataclass(frozen=True)
class Capability:
    """What becomes of a format.

    1. `native`: there is a kernel that computes in it.
    2. `dequantized`: stored small, computed in float; saves bytes, not time.
    3. `refused`: it does not build, or there is a better format for the same cost. The note says which.
    """

    status: Status
    note: str

    def to_json(self) -> dict[str, Any]:
        """Return a mapping of strings."""
        return {"schema_version": SCHEMA_VERSION, "status": self.status, "note": self.note}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Capability:
        """Read back `to_json`; raises UserError for another schema version."""
        if data.get("schema_version") != SCHEMA_VERSION:
            raise UserError(f"not a capability of schema version {SCHEMA_VERSION}: {dict(data)!r}")
        return cls(data["status"], data["note"])


@dataclass(frozen=True)
class CapabilityRow:
    """One rule of a capability table; the first rule that fits an operator and a format decides.

    1. `operators` are kinds of operator, or `*` for all of them.
    2. `formats` are patterns: `w8a8`, `w{4,8}a16`, `w{2..8}a{4..8}`, `w4a16b*`.
    3. `several_blocks`: the rule leaves out a single block as long as the input dimension.
    4. `even_elements`: the weight must have an even number of elements when it has 4 bits.
    5. `compute_capabilities`: the rule is only for these; empty means all.
    """

    operators: tuple[str, ...]
    formats: tuple[str, ...]
    status: Status
    note: str
    several_blocks: bool = False
    even_elements: bool = False
    compute_capabilities: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the rule as it is written in the table's file."""
        return {
            "operators": list(self.operators),
            "formats": list(self.formats),
            "status": self.status,
            "note": self.note,
            "several_blocks": self.several_blocks,
            "even_elements": self.even_elements,
            "compute_capabilities": list(self.compute_capabilities),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CapabilityRow:
        """Read one rule of a table's file; a wrong one is a bug in the package, hence ValueError."""
        row = cls(
            tuple(data["operators"]),
            tuple(data["formats"]),
            data["status"],
            data["note"],
            data.get("several_blocks", False),
            data.get("even_elements", False),
            tuple(data.get("compute_capabilities", ())),
        )
        unknown = set(row.operators) - {*OPERATORS, "*"}
        if unknown or row.status not in _FROM_BEST_TO_WORST:
            raise ValueError(f"wrong rule in a capability table: {dict(data)!r}")
        return row

    def fits(self, operator: str, format_: Format, in_features: int) -> bool:
        """Whether the rule is about this operator and format; the compute capability is the caller's business."""
        if operator not in self.operators and "*" not in self.operators:
            return False
        if self.several_blocks and format_.weight_block == in_features:
            return False
        return any(_pattern(text).fullmatch(str(format_)) for text in self.formats)


@dataclass(frozen=True)
class _Table:
    """One file of `deploy/capabilities`: the target with its default compute capabilities, the known ones, the rules."""

    target: Target
    known_compute_capabilities: tuple[str, ...]
    rows: tuple[CapabilityRow, ...]


def target_from_name(name: str, compute_capabilities: Sequence[str] = ()) -> Target:
    """Return the target of this name, one of `TARGET_NAMES`, for the compute capabilities given or for its usual ones.

    Raises UserError that lists the names, or the compute capabilities that the target knows.
    """
    table_of_name = _table(_checked_name(name))
    if not compute_capabilities:
        return table_of_name.target
    if not table_of_name.known_compute_capabilities:
        why = "it builds for the GPU of the machine it runs on" if name == "tensorrt" else "it does not run on a GPU"
        raise UserError(f"target {name} takes no compute capability: {why}; tensorrt-rtx does")
    wanted = tuple(dict.fromkeys(text.strip().lower() for text in compute_capabilities))
    for text in wanted:
        if text not in table_of_name.known_compute_capabilities:
            known = ", ".join(table_of_name.known_compute_capabilities)
            raise UserError(f"unknown compute capability {text!r} for {name}: it builds for {known}")
    return replace(table_of_name.target, compute_capabilities=wanted)


def capability(target: Target, operator: str, format_: Format, in_features: int, out_features: int | None = None) -> Capability:
    """Say what becomes of `format_` on an operator of kind `operator` (one of `OPERATORS`, or another, which stays float).

    `in_features` is the length of the reduction: inputs of a linear layer, input channels of a group times kernel elements of a
    convolution. A block has to divide it. `out_features` is the number of scales of a per-channel weight, for the rule that 4-bit
    weights come in pairs; without it that rule is not checked. With several compute capabilities the worst answer counts.
    """
    if operator not in OPERATORS and not format_.is_float:
        return Capability("refused", f"operators of kind {operator} are not quantised: known are {', '.join(OPERATORS)}")
    block = format_.weight_block
    if block is not None and in_features % block:
        # A runtime that infers the block from the number of scales would read them against the wrong weights, without a word.
        return Capability("refused", f"blocks of {block} do not divide the {in_features} inputs")
    odd = format_.weight_bits == _FOUR_BITS and out_features is not None and in_features * out_features % 2 == 1
    answers = [
        _first_fit(target, operator, format_, in_features, odd=odd, compute_capability=one)
        for one in target.compute_capabilities or (None,)
    ]
    return max(answers, key=lambda answer: _FROM_BEST_TO_WORST.index(answer.status))


def table(target: Target) -> tuple[CapabilityRow, ...]:
    """Return the rules of the target, first match first, without those for compute capabilities it is not built for."""
    return tuple(
        row
        for row in _table(target.family).rows
        if not row.compute_capabilities or set(row.compute_capabilities) & set(target.compute_capabilities)
    )


def _first_fit(
    target: Target, operator: str, format_: Format, in_features: int, *, odd: bool, compute_capability: str | None
) -> Capability:
    for row in _table(target.family).rows:
        if row.compute_capabilities and compute_capability not in row.compute_capabilities:
            continue
        if row.fits(operator, format_, in_features):
            if row.even_elements and odd:
                return Capability("refused", "a 4-bit weight needs an even number of elements")
            return Capability(row.status, row.note)
    return Capability("refused", f"{format_} has not been measured on {target.name}")


def _checked_name(name: str) -> str:
    if name not in TARGET_NAMES:
        raise UserError(f"unknown target {name!r}: write one of {', '.join(TARGET_NAMES)}")
    return name


@cache
def _table(family: str) -> _Table:
    data = json.loads((files("deploy") / "capabilities" / f"{family}.json").read_text("utf-8"))
    if data["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"capability table of {family} has schema version {data['schema_version']}")
    described = data["target"]
    target = Target(
        name=described["name"],
        family=family,
        runtime=cast("Runtime", described["runtime"]),
        lowering=cast("Lowering", described["lowering"]),
        reference=Format.from_text(described["reference"]),
        activation_scheme=cast("ActivationScheme", described["activation_scheme"]),
        quantize_outputs=described["quantize_outputs"],
        quantize_skips=described["quantize_skips"],
        measurable=described["measurable"],
        default_formats=tuple(Format.from_text(text) for text in described["default_formats"]),
        compute_capabilities=tuple(data["compute_capabilities"]["default"]),
    )
    rows = tuple(CapabilityRow.from_json(row) for row in data["rules"])
    return _Table(target, tuple(data["compute_capabilities"]["known"]), rows)


@cache
def _pattern(text: str) -> re.Pattern[str]:
    """Turn `w{2..4}a{4,8}b*` into a regular expression."""

    def choices(match: re.Match[str]) -> str:
        first, dots, last = match[1].partition("..")
        numbers = [str(number) for number in range(int(first), int(last) + 1)] if dots else first.split(",")
        return f"(?:{'|'.join(numbers)})"

    return re.compile(re.sub(r"\{([^}]*)\}", choices, text).replace("*", r"\d+"))
