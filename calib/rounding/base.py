"""What every rounding method is given, and the step sizes that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from calib.choices import ROUNDINGS
from calib.formats.number_type import NumberType
from calib.formats.quantizers import QuantizedWeight

_CLIP_STEPS = 36
_NEAR = 2**16
"""Numbers that a processor keeps near, a quarter of a megabyte."""
_SMALLEST_NORMAL, _LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
_DAMPINGS = (0.01, 0.1, 1.0)
_SHARE_OF_ALL = 1e-4
_STEP_OF_ZEROS = 2.0**-20
_ROUNDING_ERRORS = 8 * torch.finfo(torch.float32).eps
"""Of sums in float32, as a share of what each error would do alone, and times the root of the number of terms."""


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer's inputs: `[groups, k, k]` float32, k the length of one dot product; the mean over
    input patches.
    """

    matrix: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> Moments:
        """Take moments in float32 or float64. A factor of a group changes nothing: those that were summed in float64
        are scaled to what float32 holds.
        """
        if matrix.dtype == torch.float32:
            return cls(matrix)
        diagonal = torch.diagonal(matrix, dim1=1, dim2=2)
        return cls(scaled_by_powers(matrix, -exponents(diagonal.mean(dim=1))[:, None, None]).float())

    @property
    def diagonal(self) -> Tensor:
        """`[groups, k]`: the mean square of each input."""
        return torch.diagonal(self.matrix, dim1=1, dim2=2)

    @cached_property
    def order(self) -> Tensor:
        """`[groups, k]`: the columns, those with the largest mean square first."""
        return torch.argsort(self.diagonal, dim=1, descending=True, stable=True)

    @cached_property
    def scaled(self) -> Tensor:
        """`[groups, k, k]`: the matrix, each group times a power of two, so that what nearly dead channels give does
        not vanish.
        """
        return scaled_by_powers(self.matrix, -exponents(self.diagonal.mean(dim=1))[:, None, None])

    @cached_property
    def inverse_factor(self) -> Tensor:
        """`[groups, k, k]`: upper Cholesky factor of the inverse in that order, up to a factor for each group; shared
        by all widths.

        1 % of the mean diagonal is added. A group whose factor does not exist in float32 is solved in float64, and then
        with more damping: at last only its diagonal is left, which is rounding to nearest.
        """
        return self.inverse_factor_of(self.order)

    def inverse_factor_of(self, order: Tensor) -> Tensor:
        """Return the factor for columns in another order, `[groups, k]`."""
        length = order.shape[1]
        rows = self.scaled.gather(1, order[:, :, None].expand(-1, -1, length))
        ordered = rows.gather(2, order[:, None, :].expand(-1, length, -1))
        factor, exists = _factor(ordered, _DAMPINGS[0])
        for damping in _DAMPINGS:
            failed = torch.nonzero(~exists).flatten()
            if not len(failed):
                break
            found, solved = _factor(ordered[failed].double(), damping)
            factor[failed] = found.float()
            exists[failed] = solved & torch.isfinite(factor[failed]).all(dim=(1, 2))
        identity = torch.eye(length, device=factor.device).expand_as(factor)
        return torch.where(exists[:, None, None], factor, identity)


def _factor(ordered: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return the factor of each group with `share` of its mean diagonal added, and whether it exists."""
    diagonal = torch.diagonal(ordered, dim1=1, dim2=2)
    damping = share * diagonal.mean(dim=1, keepdim=True)
    damping = torch.where(damping > 0, damping, torch.ones_like(damping))
    lower, failed = torch.linalg.cholesky_ex(ordered + torch.diag_embed(damping.expand_as(diagonal)))
    factor, failed_too = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    exists = (failed == 0) & (failed_too == 0) & torch.isfinite(factor).all(dim=(1, 2))
    return factor, exists


def exponents(values: Tensor) -> Tensor:
    """Return the power of two just above each value, as int32; 0 for zero."""
    return torch.frexp(values.abs()).exponent


def scaled_by_powers(values: Tensor, powers: Tensor) -> Tensor:
    """Multiply by powers of two, which changes no digit."""
    half = powers // 2  # in two steps: 2 ** 140 is no float32
    return torch.ldexp(torch.ldexp(values, half), powers - half)


def output_errors(difference: Tensor, moments: Moments) -> Tensor:
    """Return `[rows]`, by how much errors `[rows, k]` of a weight change the layer's output: e H e', up to a factor for
    each group.
    """
    return _quadratic(difference, moments.scaled)


def are_worse(first: Tensor, second: Tensor, moments: Moments) -> Tensor:
    """Return for each row whether errors `[rows, k]` of a weight change the output more than others do.

    Where float32 cannot tell, as where inputs depend on one another, it is worked out in float64.
    """
    scaled = moments.scaled
    errors = [_quadratic(difference, scaled) for difference in (first, second)]
    worse = errors[0] > errors[1]
    weight = torch.diagonal(scaled, dim1=1, dim2=2).abs().repeat_interleave(len(first) // len(scaled), dim=0)
    alone = sum((difference.square() * weight).sum(dim=1) for difference in (first, second))
    doubtful = ~((errors[0] - errors[1]).abs() > _ROUNDING_ERRORS * first.shape[1] ** 0.5 * alone)
    if bool(doubtful.any()):
        exact = [_quadratic(difference.double(), scaled.double()) for difference in (first, second)]
        worse = torch.where(doubtful, exact[0] > exact[1], worse)
    return worse


def _quadratic(difference: Tensor, matrix: Tensor) -> Tensor:
    grouped = difference.reshape(len(matrix), -1, difference.shape[1])
    return ((grouped @ matrix) * grouped).sum(dim=2).reshape(-1)


class RoundWeight(Protocol):
    """A rounding method.

    `weight` is `[out, k]`, rows ordered by group; `grid` says which values there are (`NumberType.round_`);
    `scale_floor` `[out]` is the smallest scale each row may have. Returns values `[out, k]` (`NumberType.stored`) and
    scales `[out]` or `[out, k / block]`, with a zero point each where the type has them.
    """

    def __call__(
        self, weight: Tensor, moments: Moments, grid: NumberType, block: int | None, scale_floor: Tensor
    ) -> QuantizedWeight:
        """Round one layer's weight."""
        ...


def rounding(name: str) -> Callable[[RoundWeight], RoundWeight]:
    """Register a method under the name that `--rounding` takes.

    Write a function with the signature of RoundWeight in a file of its own and decorate it. A built-in one has a row in
    `calib.choices`.
    """

    def register(function: RoundWeight) -> RoundWeight:
        ROUNDINGS[name] = function
        return function

    return register


def search_scale(weight: Tensor, importance: Tensor, grid: NumberType, scale_floor: Tensor) -> Tensor:
    """Return `[rows]`, the step size of each row whose nearest rounding has the least squared error weighted by
    `importance`.

    `weight` and `importance` are `[rows, k]`; 36 clipping points up to the largest magnitude. Any step
    represents a row of zeros; it gets a small one, because an integer bias is counted in units of input step times
    weight step.
    """
    return torch.cat([_scale_of_few(*few, grid) for few in few_rows(weight, importance, scale_floor)])


def _scale_of_few(weight: Tensor, importance: Tensor, scale_floor: Tensor, grid: NumberType) -> Tensor:
    low, high = grid.limits
    weight, floor, powers = in_unit_powers(weight, scale_floor)
    largest = weight.abs().amax(dim=1)
    # the grid reaches one step further down than up, so a range that just holds the positive end may exceed the largest
    # value
    full = torch.where(largest > 0, largest / high, torch.ones_like(largest))
    best = full.clone()
    best_error = torch.full_like(full, torch.inf)
    for share in clip_shares(grid):
        scale = torch.maximum(full * share, floor)
        rounded = grid.round_(weight / scale[:, None], low, high) * scale[:, None]
        error = ((rounded - weight).square() * importance).sum(dim=1)
        better = error < best_error
        best = torch.where(better, scale, best)
        best_error = torch.where(better, error, best_error)
    return smallest_scales(best, largest > 0, powers, scale_floor)


def few_rows(weight: Tensor, importance: Tensor, scale_floor: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the rows of a weight `[rows, k]`, of its importance and of the floors `[rows]`, so many at a time as a
    processor has near: a search reads them again for each step that it tries. A GPU takes all at once.
    """
    count = max(_NEAR // weight.shape[1], 1) if weight.device.type == "cpu" else max(len(weight), 1)
    yield from zip(weight.split(count), importance.split(count), scale_floor.split(count), strict=True)


def clip_shares(grid: NumberType) -> list[float]:
    """Return the clipping points that are tried, as shares of the range that holds all weights."""
    shares: list[float] = torch.linspace(grid.smallest_clip, 1.0, _CLIP_STEPS).tolist()
    return shares


def in_unit_powers(weight: Tensor, scale_floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows `[rows, k]` and their floors `[rows]` in units of a power of two, and these powers: the squares of
    tiny weights would vanish.
    """
    powers = exponents(weight.abs().amax(dim=1))
    floor = scaled_by_powers(scale_floor, -powers).clamp(max=_LARGEST)
    return scaled_by_powers(weight, -powers[:, None]), floor, powers


def smallest_scales(scale: Tensor, used: Tensor, powers: Tensor, scale_floor: Tensor) -> Tensor:
    """Return scales that were found in units of powers of two as plain numbers, none below its floor; a small one for
    rows that are not `used`, all zeros.
    """
    found = torch.where(used, scaled_by_powers(scale, powers), torch.clamp(scale_floor, min=_STEP_OF_ZEROS))
    return torch.clamp(torch.maximum(found, scale_floor), min=_SMALLEST_NORMAL)


def importance_of(moments: Moments, rows: int) -> Tensor:
    """Return `[rows, k]`, what an error of each weight counts:
    the mean square of its input, and a little of their mean.
    """
    importance = moments.diagonal.repeat_interleave(rows // moments.matrix.shape[0], dim=0)
    importance = scaled_by_powers(importance, -exponents(importance.amax(dim=1, keepdim=True)))
    importance = importance + importance.mean(dim=1, keepdim=True) * _SHARE_OF_ALL
    return torch.where(importance.sum(dim=1, keepdim=True) > 0, importance, torch.ones_like(importance))


def search_scales(weight: Tensor, moments: Moments, grid: NumberType, block: int | None, scale_floor: Tensor) -> Tensor:
    """Return the step sizes of a whole weight `[out, k]`: `[out]`, all the same where the type has one scale, or
    `[out, k / block]`.
    """
    rows, length = weight.shape
    if grid.one_scale:
        importance = moments.diagonal.repeat_interleave(rows // moments.matrix.shape[0], dim=0)
        flat = importance.reshape(1, -1)
        flat = scaled_by_powers(flat, -exponents(flat.amax(dim=1, keepdim=True)))
        flat = flat if bool(flat.sum() > 0) else torch.ones_like(flat)
        return search_scale(weight.reshape(1, -1), flat, grid, scale_floor.max().reshape(1)).expand(rows).contiguous()
    importance = importance_of(moments, rows)
    if block is None:
        return search_scale(weight, importance, grid, scale_floor)
    blocks = length // block
    flat = search_scale(
        weight.reshape(rows * blocks, block),
        importance.reshape(rows * blocks, block),
        grid,
        scale_floor.repeat_interleave(blocks),
    )
    return flat.reshape(rows, blocks)
