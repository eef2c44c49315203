"""For which batch sizes a traced program holds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.export import ExportedProgram

_NO_LIMIT = 1 << 31


def holds_for(program: ExportedProgram, example: tuple[Tensor, ...], sizes: Sequence[int]) -> bool:
    """Whether the trace holds for batches of `sizes`: torch's ranges and guards, as `size <= 8` or `size % 2 == 0`,
    allow them.

    A lower bound of 2 is torch's own: it traces as if no size were 0 or 1. What a model does with one sample is for
    `calib.network.faithful` to compare.
    """
    if not all(_in_range(program, size) for size in sizes):
        return False
    # a module is a copy of the whole graph; private to torch is the list of guards, which most programs have none of
    if not sizes or getattr(program, "_guards_code", None) == []:
        return True
    guards = getattr(program.module(), "_guards_fn", None)
    if guards is None:  # there are none
        return True
    try:
        for size in sizes:
            guards(*(tensor[:1].expand(size, *tensor.shape[1:]) for tensor in example))
    except AssertionError:
        return False
    return True


def _in_range(program: ExportedProgram, size: int) -> bool:
    for leading in _leading_sizes(program):
        if not isinstance(leading, torch.SymInt):
            if leading != size:
                return False
            continue
        for symbol in leading.node.expr.free_symbols:
            found = program.range_constraints.get(symbol)
            if found is not None and (size > found.upper or (size < found.lower and found.lower > 2)):
                return False
    return True


def largest_batch(program: ExportedProgram) -> int | None:
    """Return how many samples at once the trace holds for; None when there is no limit."""
    symbols = [
        symbol
        for size in _leading_sizes(program)
        if isinstance(size, torch.SymInt)
        for symbol in size.node.expr.free_symbols
    ]
    limits = [program.range_constraints[symbol].upper for symbol in symbols if symbol in program.range_constraints]
    finite = [int(limit) for limit in limits if limit < _NO_LIMIT]
    return min(finite, default=None)


def _leading_sizes(program: ExportedProgram) -> list[int | torch.SymInt]:
    placeholders = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    names = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    return [placeholders[name].meta["val"].shape[0] for name in names]
