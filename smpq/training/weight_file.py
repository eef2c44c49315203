"""Weights on integers in a file of tensors: what is said about them, and what no training makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from calib.files.storage import Record
from calib.files.tensor_file import check
from calib.formats.integers import integer
from calib.formats.number_type import NUMBER_TYPES, NumberType
from calib.formats.quantizers import QuantizedWeight

_INTEGERS, _SCALE, _ZERO = "integers/", "scale/", "zero_point/"


class WeightRow(Record, frozen=True, kw_only=True, omit_defaults=True):
    """How the integers of one unit are to be read: `type` is the name of a number type with zero points, and empty for
    integers of `bits`; `widths` are the bits of its blocks where these differ.
    """

    bits: Annotated[int, Meta(ge=1, le=8)]
    block: Annotated[int, Meta(ge=2, le=2**31)] | None
    type: Annotated[str, Meta(max_length=20)] = ""
    widths: tuple[Annotated[int, Meta(ge=1, le=8)], ...] = ()

    def __post_init__(self) -> None:
        found = NUMBER_TYPES.get(self.type)
        if self.type and (found is None or not found.zero_points or self.block is None):
            raise ValueError(f"{self.type!r} is no type of blocks with zero points")
        if self.number_type().widest_bits != self.bits or (self.type == "" and self.widths):
            raise ValueError(f"{self.type!r} with widths {list(self.widths)} does not have {self.bits} bits")

    def number_type(self) -> NumberType:
        """Return the type of the values."""
        if self.type == "":
            return integer(self.bits)
        return NUMBER_TYPES[self.type].with_widths(lambda: self.widths)


def row_of(weight: QuantizedWeight) -> WeightRow:
    """Return what a file says about a weight."""
    if not weight.type.zero_points:
        return WeightRow(bits=weight.bits, block=weight.block)
    return WeightRow(bits=weight.bits, block=weight.block, type=weight.type.name, widths=weight.type.block_widths)


def tensors_of(unit: str, weight: QuantizedWeight) -> dict[str, Tensor]:
    """Return the tensors of a unit's weight by their names in the file."""
    found = {f"{_INTEGERS}{unit}": weight.values, f"{_SCALE}{unit}": weight.scale}
    return found if weight.zero_point is None else {**found, f"{_ZERO}{unit}": weight.zero_point}


def names_of(unit: str, row: WeightRow) -> tuple[str, ...]:
    """Return the names of the tensors of a unit's weight."""
    parts = (_INTEGERS, _SCALE, _ZERO) if row.number_type().zero_points else (_INTEGERS, _SCALE)
    return tuple(f"{part}{unit}" for part in parts)


def weight_from(unit: str, row: WeightRow, tensors: Mapping[str, Tensor]) -> QuantizedWeight:
    """Return a unit's weight; KeyError when one of its tensors is missing. `check_weight` says whether it is one."""
    values, scale, *zero = (tensors[name] for name in names_of(unit, row))
    return QuantizedWeight(row.number_type(), values, scale, row.block, zero[0] if zero else None)


def check_weight(weight: QuantizedWeight, path: Path, unit: str, repair: str) -> None:
    """Raise UserError unless the integers have the bits that are said, and a positive step, and a zero point among the
    values where there are some, for each channel or block.
    """
    integers, scale, name = weight.values, weight.scale, repr(unit[:200])
    stored = weight.type.stored(torch.zeros(1)).dtype
    kind = str(stored).removeprefix("torch.")
    check(
        integers.dtype == stored and integers.dim() >= 2, path, f"the weight {name} is no {kind} [out, in, ...]", repair
    )
    out, inputs = integers.shape[:2]
    wanted = (out,) if weight.block is None else (out, inputs // weight.block)
    fits = tuple(scale.shape) == wanted and (weight.block is None or inputs % weight.block == 0)
    check(fits, path, f"the steps of {name} have shape {list(scale.shape)}, expected {list(wanted)}", repair)
    widths = weight.type.block_widths
    check(not widths or len(widths) == wanted[-1], path, f"{name} has {len(widths)} widths for its blocks", repair)
    low, high = weight.type.limits
    check(
        _inside(weight),
        path,
        f"the weight {name} of {weight.bits} bits has integers outside of {low} to {high}",
        repair,
    )
    positive = scale.dtype == torch.float32 and bool((scale > 0).all())
    check(positive, path, f"the steps of {name} are not all above zero", repair)
    zero = weight.zero_point
    if zero is not None:
        among = zero.dtype == torch.float32 and zero.shape == scale.shape and _zeros_inside(weight, zero)
        check(among, path, f"the zero points of {name} are not among its values", repair)


def _inside(weight: QuantizedWeight) -> bool:
    """Whether every value is one of its type."""
    values = weight.values.float()
    parts = [values] if weight.block is None else values.split(weight.block, dim=1)
    for number, part in enumerate(parts):
        own = weight.type.of_block(number)
        if not bool((own.round_(part.clone(), *own.limits) == part).all()):
            return False
    return True


def _zeros_inside(weight: QuantizedWeight, zero: Tensor) -> bool:
    for number, column in enumerate(zero.T):
        first, last = weight.type.of_block(number).zero_point_limits
        if not bool(((column >= first) & (column <= last) & (column == column.round())).all()):
            return False
    return True
