"""For which sizes of its inputs a traced program holds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.export import ExportedProgram

from calib.sizes import Shape

_NO_LIMIT = 1 << 31


def holds_for(program: ExportedProgram, example: tuple[Tensor, ...], shapes: Sequence[Sequence[Shape]]) -> bool:
    """Whether the trace holds for inputs of `shapes`, each with those of all inputs: torch's ranges and guards, as
    `size <= 8` or `size % 2 == 0`, allow them.

    A lower bound of 2 is torch's own: it traces as if no size were 0 or 1. What a model does with one sample is for
    `calib.network.faithful` to compare.
    """
    if not in_ranges(program, shapes):
        return False
    # a module is a copy of the whole graph; private to torch is the list of guards, which most programs have none of
    if not shapes or getattr(program, "_guards_code", None) == []:
        return True
    guards = getattr(program.module(), "_guards_fn", None)
    if guards is None:  # there are none
        return True
    try:
        for sizes in shapes:
            guards(*(_of_shape(tensor, shape) for tensor, shape in zip(example, sizes, strict=True)))
    except AssertionError:
        return False
    return True


def in_ranges(program: ExportedProgram, shapes: Sequence[Sequence[Shape]]) -> bool:
    """Whether each size lies in the range that the trace has for it."""
    return all(_in_range(program, sizes) for sizes in shapes)


def _of_shape(tensor: Tensor, shape: Shape) -> Tensor:
    """Return a tensor of that shape which takes no memory."""
    return tensor.new_zeros(()).expand(shape)


def _in_range(program: ExportedProgram, shapes: Sequence[Shape]) -> bool:
    for traced, given in zip(_input_shapes(program), shapes, strict=True):
        for known, size in zip(traced, given, strict=True):
            if not isinstance(known, torch.SymInt):
                if known != size:
                    return False
                continue
            for symbol in known.node.expr.free_symbols:
                found = program.range_constraints.get(symbol)
                if found is not None and (size > found.upper or (size < found.lower and found.lower > 2)):
                    return False
    return True


def largest_batch(program: ExportedProgram) -> int | None:
    """Return how many samples at once the trace holds for; None when there is no limit."""
    symbols = [
        symbol
        for size, *_ in _input_shapes(program)
        if isinstance(size, torch.SymInt)
        for symbol in size.node.expr.free_symbols
    ]
    limits = [program.range_constraints[symbol].upper for symbol in symbols if symbol in program.range_constraints]
    finite = [int(limit) for limit in limits if limit < _NO_LIMIT]
    return min(finite, default=None)


def _input_shapes(program: ExportedProgram) -> list[Sequence[int | torch.SymInt]]:
    placeholders = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    names = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    return [placeholders[name].meta["val"].shape for name in names]
