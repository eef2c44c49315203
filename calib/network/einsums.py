"""Write an einsum with one parameter as a linear layer between permutations."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from calib.network.nodes import become, insert_call, operator_name, source_of

_ATEN = torch.ops.aten
_OPERANDS = 2


def spell_out_einsums(graph: fx.Graph, parameters: Collection[str]) -> None:
    """Replace the einsums of a tensor and a parameter that a linear layer computes, in place.

    1. Such a layer sums over one axis or more that both have and the result has not, and has all other axes of both.
    2. The tensor is permuted so that what is summed stands last, the result so that its axes are those of the einsum;
       neither where it is so already. The parameter is permuted and reshaped to `[out, in]`.
    3. Left alone: axes that both have and the result has too (a product for each), diagonals, axes that are summed in
       one operand alone.
    """
    for node in list(graph.nodes):
        if operator_name(node) != "einsum":
            continue
        equation, operands = node.args[:2]
        weights = [operand for operand in operands if source_of(operand)[0].name in parameters]
        if len(operands) != _OPERANDS or len(weights) != 1:
            continue
        first = operands[0] is weights[0]
        axes = _axes(str(equation), [operand.meta["val"].dim() for operand in operands], weight_first=first)
        if axes is not None:
            _replace(graph, node, operands[1] if first else operands[0], weights[0], axes)


@dataclass(frozen=True)
class _Axes:
    """The axes of an einsum by letter; those of an ellipsis are called by numbers."""

    data: Sequence[str]
    weight: Sequence[str]
    result: Sequence[str]

    @property
    def summed(self) -> list[str]:
        return [axis for axis in self.data if axis in self.weight]

    @property
    def rows(self) -> list[str]:
        return [axis for axis in self.data if axis not in self.weight]

    @property
    def columns(self) -> list[str]:
        return [axis for axis in self.result if axis in self.weight]

    @property
    def linear(self) -> bool:
        """Whether a linear layer computes it."""
        plain = all(len(set(axes)) == len(axes) for axes in (self.data, self.weight, self.result))
        kept = {*self.rows, *(axis for axis in self.weight if axis not in self.data)}
        return plain and bool(self.summed and self.rows and self.columns) and kept == set(self.result)


def _axes(equation: str, dims: Sequence[int], *, weight_first: bool) -> _Axes | None:
    """Read an equation; None where no linear layer computes it."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        once = sorted(letter for letter in set(left) - {",", "."} if left.count(letter) == 1)
        result = ("..." if "..." in left else "") + "".join(once)
    data, weight = reversed(terms) if weight_first else terms
    dim = dims[1] if weight_first else dims[0]
    if "..." in weight:
        return None
    ellipsis = [str(number) for number in range(dim - len(data.replace("...", "")))]
    read = [
        [*before, *(ellipsis if dots else ()), *after]
        for before, dots, after in (data.partition("..."), result.partition("..."))
    ]
    axes = _Axes(read[0], list(weight), read[1])
    return axes if axes.linear else None


def _replace(graph: fx.Graph, node: fx.Node, data: fx.Node, weight: fx.Node, axes: _Axes) -> None:
    sizes = dict(zip(axes.weight, weight.meta["val"].shape, strict=True))
    rows, columns, summed = axes.rows, axes.columns, axes.summed

    def call(target: Any, *args: Any) -> fx.Node:
        return insert_call(graph, node, target, args)

    def permuted(tensor: fx.Node, found: Sequence[str], wanted: Sequence[str]) -> fx.Node:
        order = [found.index(axis) for axis in wanted]
        return tensor if order == sorted(order) else call(_ATEN.permute.default, tensor, order)

    data = permuted(data, axes.data, rows + summed)
    weight = permuted(weight, axes.weight, columns + summed)
    if len(summed) > 1:
        data = call(_ATEN.flatten.using_ints, data, len(rows), -1)
    if len(axes.weight) > _OPERANDS:
        shape = [math.prod(sizes[axis] for axis in part) for part in (columns, summed)]
        weight = call(_ATEN.reshape.default, weight, shape)
    steps: list[tuple[Any, ...]] = [(_ATEN.linear.default, weight)]
    if len(columns) > 1:
        steps.append((_ATEN.unflatten.int, -1, [sizes[axis] for axis in columns]))
    if rows + columns != list(axes.result):
        steps.append((_ATEN.permute.default, [(rows + columns).index(axis) for axis in axes.result]))
    for target, *rest in steps[:-1]:
        data = call(target, data, *rest)
    target, *rest = steps[-1]
    become(node, target, (data, *rest))
