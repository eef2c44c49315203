"""GPTQ, then numbers and steps in turn: what is left of the output's error goes down until nothing moves."""

from __future__ import annotations

import torch
from torch import Tensor

from calib.formats.number_type import NumberType
from calib.formats.quantizers import QuantizedWeight
from calib.rounding.base import Moments, are_worse, exponents, rounding, scaled_by_powers
from calib.rounding.gptq import round_gptq
from calib.rounding.grids import Grid

_ROUNDS = 6
_PASSES = 2
_AT_ONCE = 2**24
"""Numbers that what some rows need at a time may have: each block of a row is multiplied by all moments."""
_RIDGE = 1e-6


@rounding("descent")
def round_descent(
    weight: Tensor, moments: Moments, grid: NumberType, block: int | None, scale_floor: Tensor
) -> QuantizedWeight:
    """Minimise the error of the layer's output e H e' from what GPTQ gives, by coordinate descent.

    Behdin et al., QuantEase, arXiv 2309.01885: each weight in turn gets the number that is best while all others stay,
    which has a closed form. Ours: six times, two passes over the columns are followed by the steps that are best for
    the numbers, one system of linear equations a row. A row that does not get better keeps what GPTQ gave.
    """
    start = round_gptq(weight, moments, grid, block, scale_floor)
    length = weight.shape[1]
    # in units of a power of two for each row: the squares of tiny weights would vanish
    powers = -exponents(weight.abs().amax(dim=1))
    target = scaled_by_powers(weight, powers[:, None])
    unit = powers if start.scale.dim() == 1 else powers[:, None]
    found = Grid(start.type, block, scaled_by_powers(start.scale, unit), start.zero_point)
    floor = scaled_by_powers(scale_floor, powers)
    zeros = found.zeros(length)
    numbers = start.values.float() if zeros is None else start.values.float() - zeros
    first = numbers * found.steps(length) - target
    for number in range(_ROUNDS):
        before = numbers
        numbers = _best_numbers(target, numbers, found, moments.scaled)
        if number and torch.equal(before, numbers):
            break
        if not grid.one_scale:
            found = _best_steps(target, numbers, found, moments.scaled, floor)
    worse = are_worse(numbers * found.steps(length) - target, first, moments)
    made = Grid(start.type, block, scaled_by_powers(found.scale, -unit), start.zero_point)
    old = Grid(start.type, block, start.scale, start.zero_point)
    kept = start.values.float() if zeros is None else start.values.float() - zeros
    return old.where(worse, made).weight(torch.where(worse[:, None], kept, numbers))


def _best_numbers(target: Tensor, numbers: Tensor, grid: Grid, moments: Tensor) -> Tensor:
    """Return numbers `[out, k]` after passes in which each column is rounded to what is best for the other columns'
    errors.
    """
    groups, length, _ = moments.shape
    shape = (groups, -1, length)
    steps = grid.steps(length).expand_as(target)
    zeros = grid.zeros(length)
    numbers = numbers.clone()
    errors = (numbers * steps - target).reshape(shape)
    pulls = errors @ moments
    for column in list(range(length)) * _PASSES:
        own = moments[:, column, column]
        step, type_ = steps[:, column], grid.of_column(column)
        alone = torch.where(own > 0, own, torch.ones_like(own))[:, None]
        aim = (pulls[:, :, column] / alone - errors[:, :, column]).reshape(-1)
        values = (target[:, column] - aim) / step
        zero = torch.zeros_like(step) if zeros is None else zeros[:, column]
        best = type_.round_(values + zero, *type_.limits) - zero
        best = torch.where((own > 0).repeat_interleave(len(target) // groups), best, numbers[:, column])
        change = ((best - numbers[:, column]) * step).reshape(groups, -1)
        numbers[:, column] = best
        errors[:, :, column] += change
        pulls += change[:, :, None] * moments[:, None, column]
    return numbers


def _best_steps(target: Tensor, numbers: Tensor, grid: Grid, moments: Tensor, floor: Tensor) -> Grid:
    """Return the grid with the steps of least error e H e' for the numbers, row by row; a row where one of them would
    not be above its floor keeps its steps.
    """
    rows, length = numbers.shape
    groups = len(moments)
    before = grid.scale.reshape(rows, -1)
    blocks = before.shape[1]
    scale = torch.empty_like(before)
    largest = length * (max(blocks, length) if groups > 1 else blocks)  # of groups a row has moments of its own
    for part in torch.arange(rows, device=numbers.device).split(max(_AT_ONCE // largest, 1)):
        own = moments[part * groups // rows] if groups > 1 else moments
        parts = numbers[part].reshape(len(part), blocks, -1)
        weighted = torch.einsum("rbi,rbik->rbk", parts, own.reshape(len(own), blocks, -1, length))
        matrix = torch.einsum("rbci,rci->rbc", weighted.reshape(*weighted.shape[:2], blocks, -1), parts).double()
        right = (weighted @ target[part][:, :, None]).double()
        diagonal = torch.diagonal(matrix, dim1=1, dim2=2)
        ridge = _RIDGE * diagonal + torch.finfo(torch.float32).tiny
        solved, failed = torch.linalg.solve_ex(matrix + torch.diag_embed(ridge), right)
        new = grid.type.held(solved[:, :, 0].float())
        fine = ((new > floor[part][:, None]) & (new > 0) & torch.isfinite(new)).all(dim=1) & (failed == 0)
        scale[part] = torch.where(fine[:, None], new, before[part])
    return Grid(grid.type, grid.block, scale.reshape(grid.scale.shape), grid.zero)
