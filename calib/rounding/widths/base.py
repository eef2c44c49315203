"""What every width rule is given, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from calib.choices import WIDTH_RULES
from calib.formats.zero_points import zero_point
from calib.rounding.base import Moments
from calib.rounding.grids import search_range


class ChooseWidths(Protocol):
    """A width rule.

    `weight` is `[out, k]`, `moments` those of its inputs (one group), `average` the bits that a weight may have,
    `block` the length of a block. Returns the bits of each block, in order: k / block numbers of
    `calib.formats.mixed_widths.WIDTHS` whose sum is `bits_of_blocks(average, k / block)`.
    """

    def __call__(self, weight: Tensor, moments: Moments, average: float, block: int) -> tuple[int, ...]:
        """Decide the widths of one layer."""
        ...


def width_rule(name: str) -> Callable[[ChooseWidths], ChooseWidths]:
    """Register a rule under the name that `--widths` takes.

    Write a function with the signature of ChooseWidths in a file of its own in `calib/rounding/widths` and decorate it.
    A built-in one has a row in `calib.choices`.
    """

    def register(function: ChooseWidths) -> ChooseWidths:
        WIDTH_RULES[name] = function
        return function

    return register


def salience(weight: Tensor, moments: Moments) -> Tensor:
    """Return `[out, k]`, W_ij^2 / U_jj^2: U is the upper Cholesky factor of the inverse second moments in the order of
    the columns, 1 % of the mean diagonal added (Huang et al., arXiv 2405.14917, definition of salience).

    It is what setting the weight to zero would change of the output if the columns behind it absorbed the error.
    """
    return weight.square() * weights_of_errors(weight, moments)


def weights_of_errors(weight: Tensor, moments: Moments) -> Tensor:
    """Return `[out, k]`, 1 / U_jj^2 in each row: what a squared error of a weight counts once others absorb it."""
    if len(moments.matrix) != 1:
        raise ValueError("a layer with blocks has one group of inputs")
    columns = torch.arange(weight.shape[1], device=weight.device)[None]
    factor = torch.diagonal(moments.inverse_factor_of(columns), dim1=1, dim2=2)
    return (1 / factor.square()).expand(len(weight), -1)


def errors_of_width(weight: Tensor, importance: Tensor, bits: int, block: int) -> Tensor:
    """Return `[out, k]`, what rounding to the nearest leaves of a weight whose blocks all have so many bits; the range
    of each has the least squared error weighted with `importance`, `[out, k]`.
    """
    type_, parts = zero_point(bits), weight.reshape(-1, block)
    floor = torch.zeros(len(parts), device=weight.device)
    scale, zero = (each[:, None] for each in search_range(parts, importance.reshape(-1, block), type_, floor))
    rounded = (type_.round_(parts / scale + zero, *type_.limits) - zero) * scale
    return (rounded - parts).reshape(weight.shape)
