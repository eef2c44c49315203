"""A number type and a rounding that live in the tests alone: nothing in the package knows of them."""

from __future__ import annotations

import torch
from torch import Tensor

from calib.formats.number_type import NumberType, Storage, number_type
from calib.formats.quantizers import QuantizedWeight
from calib.rounding import Moments, rounding

calls: list[str] = []


@number_type("pow4")
class PowerOfTwo(NumberType):
    """Zero, and powers of two from 1 to 64 with their sign: 4 bits, held by INT8."""

    @property
    def bits(self) -> int:
        return 4

    @property
    def limits(self) -> tuple[int, int]:
        return -64, 64

    @property
    def weight_storages(self) -> tuple[Storage, ...]:
        return (Storage("INT8", 13),)

    def round_(self, steps: Tensor, low: float, high: float) -> Tensor:
        powers = torch.exp2(torch.log2(steps.abs().clamp(min=0.5)).round().clamp(0, 6))
        return steps.copy_(torch.where(steps.abs() < 0.5, 0.0, powers * steps.sign()))

    def stored(self, values: Tensor) -> Tensor:
        return values.to(torch.int8)


@rounding("down")
def round_down(
    weight: Tensor, moments: Moments, grid: NumberType, block: int | None, scale_floor: Tensor
) -> QuantizedWeight:
    """Round towards zero, up to what the type's own rounding does with that."""
    calls.append(grid.name)
    scale = torch.maximum(weight.abs().amax(1) / grid.limits[1], scale_floor).clamp(min=1e-8)
    return QuantizedWeight(grid, grid.stored(grid.round_((weight / scale[:, None]).trunc(), *grid.limits)), scale)
