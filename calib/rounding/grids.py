"""The grid of a whole weight: a scale, and a zero point where the type has one, for each row or block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calib.formats.number_type import NumberType
from calib.formats.quantizers import QuantizedWeight
from calib.rounding.base import (
    Moments,
    clip_shares,
    few_rows,
    importance_of,
    in_unit_powers,
    search_scales,
    smallest_scales,
)

_NEIGHBOURS = (0, -1, 1)
"""Zero points that are tried, counted from the one of the smallest and largest weight."""


SearchBlock = Callable[[slice, NumberType], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Grid:
    """The grid of a weight `[out, k]` of one number type.

    `scale` is `[out]` or `[out, k / block]`; `zero` is the same for types with zero points, else None.
    """

    type: NumberType
    block: int | None
    scale: Tensor
    zero: Tensor | None = None

    def steps(self, length: int) -> Tensor:
        """Return the step of each weight, `[out, 1]` or `[out, k]`."""
        return _by_column(self.scale, length)

    def zeros(self, length: int) -> Tensor | None:
        """Return the zero point of each weight, in the shape of `steps`."""
        return None if self.zero is None else _by_column(self.zero, length)

    def scaled(self, factor: float, floor: Tensor) -> Grid:
        """Return the grid with other steps, none below those of `floor` `[out]`."""
        floor = floor if self.scale.dim() == 1 else floor[:, None]
        return Grid(self.type, self.block, torch.maximum(self.type.held(self.scale * factor), floor), self.zero)

    def where(self, rows: Tensor, other: Grid) -> Grid:
        """Return this grid in some rows and another one in the rest."""
        zero = self.zero if self.zero is None or other.zero is None else _where(rows, self.zero, other.zero)
        return Grid(self.type, self.block, _where(rows, self.scale, other.scale), zero)

    def rows(self, part: slice) -> Grid:
        """Return the grid of some rows."""
        return Grid(self.type, self.block, self.scale[part], None if self.zero is None else self.zero[part])

    @staticmethod
    def joined(parts: Sequence[Grid]) -> Grid:
        """Return the grid of the rows of all parts, in their order."""
        zeros = [part.zero for part in parts if part.zero is not None]
        scale = torch.cat([part.scale for part in parts])
        return Grid(parts[0].type, parts[0].block, scale, torch.cat(zeros) if zeros else None)

    def nearest(self, weight: Tensor) -> Tensor:
        """Return the nearest numbers in units of the step: values less their zero points, `[out, k]` like `weight`."""
        zeros = self.zeros(weight.shape[1])
        steps = weight / self.steps(weight.shape[1])
        if zeros is None:
            return self.type.round_(steps, *self.type.limits)
        values = steps + zeros
        for type_, columns in self._columns(weight.shape[1]).items():
            values[:, columns] = type_.round_(values[:, columns], *type_.limits)
        return values - zeros

    def of_column(self, column: int) -> NumberType:
        """Return the type of the numbers in one column."""
        return self.type if self.block is None else self.type.of_block(column // self.block)

    def _columns(self, length: int) -> dict[NumberType, list[int]]:
        found: dict[NumberType, list[int]] = {}
        for column in range(length):
            found.setdefault(self.of_column(column), []).append(column)
        return found

    def weight(self, numbers: Tensor) -> QuantizedWeight:
        """Return the weight of such numbers `[out, k]`."""
        zeros = self.zeros(numbers.shape[1])
        values = numbers if zeros is None else numbers + zeros
        return QuantizedWeight(self.type, self.type.stored(values), self.scale, self.block, self.zero)


def search_grid(weight: Tensor, moments: Moments, type_: NumberType, block: int | None, scale_floor: Tensor) -> Grid:
    """Return the grid of a weight `[out, k]` whose nearest rounding has the least squared error weighted with diag(H).

    `scale_floor` is `[out]`. Types without zero points: `calib.rounding.base.search_scales`; with them: `search_range`.
    """
    if not type_.zero_points:
        return Grid(type_, block, search_scales(weight, moments, type_, block, scale_floor))
    importance = importance_of(moments, len(weight))

    def search(columns: slice, own: NumberType) -> tuple[Tensor, Tensor]:
        return search_range(weight[:, columns], importance[:, columns], own, scale_floor)

    return grid_by_block(weight.shape[1], type_, block, search)


def grid_by_block(length: int, type_: NumberType, block: int | None, search: SearchBlock) -> Grid:
    """Return the grid of a weight whose type has zero points, each block searched alone.

    `search` is given the columns of a block and the type of its numbers, and returns scale and zero point `[out]`.
    """
    if block is None:
        raise ValueError(f"weights of type {type_.name} have blocks")
    starts = range(0, length, block)
    found = [search(slice(start, start + block), type_.of_block(start // block)) for start in starts]
    scale, zero = (torch.stack(each, dim=1) for each in zip(*found, strict=True))
    return Grid(type_, block, scale, zero)


def search_range(weight: Tensor, importance: Tensor, type_: NumberType, scale_floor: Tensor) -> tuple[Tensor, Tensor]:
    """Return step and zero point `[rows]` of the least squared error weighted by `importance`.

    `weight` and `importance` are `[rows, k]`. Zero points: that of the smallest and largest weight and its two
    neighbours. For each, 36 clipping points of the range that just holds all weights. As in `search_scale`, a row of
    zeros gets a small step.
    """
    found = [_range_of_few(*few, type_) for few in few_rows(weight, importance, scale_floor)]
    steps, zeros = zip(*found, strict=True)
    return torch.cat(steps), torch.cat(zeros)


def _range_of_few(weight: Tensor, importance: Tensor, scale_floor: Tensor, type_: NumberType) -> tuple[Tensor, Tensor]:
    weight, floor, powers = in_unit_powers(weight, scale_floor)
    _, levels = type_.limits
    first, last = type_.zero_point_limits
    low, high = weight.amin(dim=1).clamp(max=0), weight.amax(dim=1).clamp(min=0)
    span = torch.where(high > low, high - low, torch.ones_like(low))
    around = torch.round(-low / span * levels)
    best, best_zero = torch.ones_like(low), around.clamp(first, last)
    best_error = torch.full_like(low, torch.inf)
    for neighbour in _NEIGHBOURS if last > first else _NEIGHBOURS[:1]:
        zero = (around + neighbour).clamp(first, last)
        full = torch.maximum(-low / zero.clamp(min=1), high / (levels - zero).clamp(min=1))
        full = torch.where(full > 0, full, torch.ones_like(full))
        for share in clip_shares(type_):
            scale = torch.maximum(type_.held(full * share), floor)
            numbers = type_.round_(weight / scale[:, None] + zero[:, None], *type_.limits) - zero[:, None]
            error = ((numbers * scale[:, None] - weight).square() * importance).sum(dim=1)
            better = error < best_error
            best, best_zero = torch.where(better, scale, best), torch.where(better, zero, best_zero)
            best_error = torch.where(better, error, best_error)
    return smallest_scales(best, high > low, powers, scale_floor), best_zero


def _by_column(of_scales: Tensor, length: int) -> Tensor:
    if of_scales.dim() == 1:
        return of_scales[:, None]
    return of_scales.repeat_interleave(length // of_scales.shape[1], dim=1)


def _where(rows: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(rows.reshape(-1, *[1] * (one.dim() - 1)), one, other)


def ranged(weight: Tensor, type_: NumberType) -> tuple[Tensor, Tensor]:
    """Return step and zero point `[rows]` of the range of the weights `[rows, k]`, nothing clipped;
    of one bit, the mean magnitude around zero.
    """
    _, levels = type_.limits
    first, last = type_.zero_point_limits
    low, high = weight.amin(dim=1).clamp(max=0), weight.amax(dim=1).clamp(min=0)
    step = (high - low) / levels if last > first else weight.abs().mean(dim=1)
    step = torch.where(step > 0, step, torch.ones_like(step))
    return step, torch.round(-low / step).clamp(first, last)
