"""Evaluate many policies on one batch, computing what several of them share only once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from calib.network.execution import Edits, Execution, signatures
from calib.network.graph import TracedModel
from calib.network.units import Unit


def outputs_of(
    traced: TracedModel,
    inputs: Sequence[Tensor],
    edits: Sequence[Edits],
    order: torch.memory_format = torch.contiguous_format,
) -> Iterator[tuple[int, Any]]:
    """Yield (index into `edits`, the model's output under them), each once, in no particular order. `order` is that of
    the inputs in memory.

    The policies form a prefix tree over the steps of the graph: those that agree up to a step run as one up to there,
    and fork. A change of one layer thus costs the layers behind it only. The same operators run on the same numbers as
    in `TracedModel.run`, so the outputs are equal bit by bit. Memory: the live tensors of one fork for each step at
    which policies part (see `bytes_per_sample`). Ours.
    """
    marks: npt.NDArray[np.int64] = _numbered([signatures(traced, edit) for edit in edits])

    def descend(members: list[int], execution: Execution) -> Iterator[tuple[int, Any]]:
        column = _parting(marks[members])
        execution.advance(edits[members[0]], None if column is None else column - 1)
        if column is None:
            output = execution.output()
            for member in members:
                yield member, output
            return
        parts = _grouped(marks, members, column)
        for part in parts[:-1]:
            yield from descend(part, execution.fork())
        yield from descend(parts[-1], execution)

    with torch.no_grad():
        for part in _grouped(marks, list(range(len(edits))), 0):
            yield from descend(part, Execution(traced, inputs, edits[part[0]], order=order))


def bytes_per_sample(traced: TracedModel, units: Sequence[Unit]) -> int:
    """Return how many bytes the tensors of one sample may take at once: at most one fork waits at each call of a
    unit.
    """
    sizes = {
        node.name: _bytes(traced, node.meta.get("val")) for node in traced.graph.nodes if node.name not in traced.state
    }
    alive = sum(sizes.get(name, 0) for name in traced.inputs)
    calls = {call for unit in units for call in unit.uses}
    waiting = largest = 0
    for node in traced.steps:
        if node.name in calls:
            waiting += alive
        alive += sizes[node.name]
        largest = max(largest, alive)
        alive -= sum(sizes.get(name, 0) for name in traced.last_uses.get(node.name, ()))
    return waiting + 2 * largest  # a quantised copy of a tensor lives beside it


def output_bytes_per_sample(traced: TracedModel) -> int:
    """Return how many bytes the output of one sample takes."""
    leaves = [leaf for leaf in pytree.tree_leaves(traced.output.args[0]) if isinstance(leaf, fx.Node)]
    return sum(_bytes(traced, leaf.meta.get("val")) for leaf in leaves)


def _bytes(traced: TracedModel, value: Any) -> int:
    if not isinstance(value, Tensor) or value.dim() == 0:
        return 0
    return traced.elements_of_one(value) * value.element_size()


def _numbered(rows: Sequence[Sequence[tuple[int, ...]]]) -> npt.NDArray[np.int64]:
    numbers: dict[tuple[int, ...], int] = {}
    return np.array([[numbers.setdefault(mark, len(numbers)) for mark in row] for row in rows])


def _parting(rows: npt.NDArray[np.int64]) -> int | None:
    """Return the first column in which the rows differ, None when they are equal."""
    differs = (rows != rows[0]).any(axis=0)
    return int(differs.argmax()) if differs.any() else None


def _grouped(marks: npt.NDArray[np.int64], members: list[int], column: int) -> list[list[int]]:
    parts: dict[int, list[int]] = {}
    for member in members:
        parts.setdefault(int(marks[member, column]), []).append(member)
    return list(parts.values())
