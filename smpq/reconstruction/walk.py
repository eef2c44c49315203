"""Tensors of many samples on their way through a network, block by block."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from calib.errors import UserError
from calib.network.execution import NO_EDITS, Edits, Execution, Observe
from calib.network.graph import TracedModel
from calib.network.order import order_of
from calib.task import Batch
from smpq.reconstruction.blocks import Block
from smpq.value.rows import has_rows, joined, rows_of

_AT_A_TIME = 3
"""What the float and the quantised network give a block, and what the float block makes of it."""

Rows = Mapping[str, Tensor]
"""Tensors in front of a block by name, one row a sample."""


class Walk:
    """Runs blocks on samples that were taken from batches. Every run has `size` samples, so that the sizes that a graph
    computes of its inputs are the same each time.
    """

    def __init__(
        self,
        traced: TracedModel,
        blocks: Sequence[Block],
        batches: Iterable[Batch],
        samples: int,
        size: int,
        memory_mb: float | None = None,
    ) -> None:
        """Take the first `samples` of the batches, cut to a multiple of `size`, that of a run:
        the only one that the network takes, if there is one. UserError where there are fewer than that, and where
        targets, if they are not None, have no row for each sample.

        Tensors behind a block that take more than `memory_mb` with those of two more walks lie in files that are gone
        with them.
        """
        self.traced, self.blocks = traced, blocks
        self.inputs, self._targets = _first(batches, max(samples, size), None if traced.dynamic_batch else size)
        found = len(self.inputs[0])
        self.size = min(size, found) if traced.dynamic_batch else size
        self.count = found - found % self.size
        if not self.count:
            raise UserError("there are too few calibration samples to reconstruct the network on: give it one batch")
        self.inputs = [tensor[: self.count] for tensor in self.inputs]
        self._most_bytes = math.inf if memory_mb is None else memory_mb * 2**20 / _AT_A_TIME
        self._others = self._without_rows()
        self._outputs: dict[int, Any] = {}

    def begin(self, edits: Edits = NO_EDITS) -> Rows:
        """Return the inputs as the first block reads them."""
        return {
            name: edits.sources[name](tensor) if name in edits.sources else tensor
            for name, tensor in zip(self.traced.inputs, self.inputs, strict=True)
        }

    def pieces(self) -> Iterator[Tensor]:
        """Yield the numbers of the samples of each run over all of them."""
        yield from torch.arange(self.count).split(self.size)

    def run(
        self, block: Block, rows: Rows, edits: Edits, stop: int | None = None, observe: Observe | None = None
    ) -> Execution:
        """Run a block on one row for each sample of a run; up to step `stop` where that is not the block's own."""
        values = {**self._others[block.start], **rows}
        return Execution.at(self.traced, block.start, values).advance(edits, stop or block.stop, observe)

    def taken(self, rows: Rows, index: Tensor) -> dict[str, Tensor]:
        """Return the rows of some samples, where the network is."""
        return {name: tensor[index].to(self.inputs[0].device) for name, tensor in rows.items()}

    def through(self, block: Block, rows: Rows, edits: Edits) -> Rows:
        """Return the tensors behind a block that have a row for each sample, for all of them; no gradient is recorded.

        Behind the last block there may be others: what a network returns besides.
        """
        found: dict[str, Tensor] = {}
        others = self._others[block.stop]
        with torch.no_grad():
            for piece in self.pieces():
                values = self.run(block, self.taken(rows, piece), edits).values
                made = {
                    name: value
                    for name, value in values.items()
                    if name not in others and value.dim() and len(value) == len(piece)
                }
                found = found or self.room(made)
                for name, value in made.items():
                    found[name][int(piece[0]) : int(piece[-1]) + 1] = value
        return found

    def room(self, made: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors for all samples, like those of one run: in memory where they fit, else in files."""
        needed = sum(value.nbytes for value in made.values()) / self.size * self.count
        make = _in_memory if needed <= self._most_bytes else _in_a_file
        return {name: make(value, self.count) for name, value in made.items()}

    def expected(self, piece: Tensor) -> Any:
        """Return the float network's output of one run; computed once where the outputs of all runs fit in memory."""
        start = int(piece[0])
        if start in self._outputs:
            return self._outputs[start]
        inputs = dict(zip(self.traced.inputs, (tensor[piece] for tensor in self.inputs), strict=True))
        with torch.no_grad():
            output = Execution.at(self.traced, 0, inputs).advance(NO_EDITS).output()
        needed = sum(leaf.nbytes for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))
        if needed / self.size * self.count <= self._most_bytes:
            self._outputs[start] = output
        return output

    def target(self, piece: Tensor) -> Any:
        """Return the target of the samples of one run."""
        return rows_of(self._targets, slice(int(piece[0]), int(piece[-1]) + 1))

    def finish(self, block: Block, rows: Rows, made: Mapping[str, Tensor]) -> Any:
        """Return the network's output of one run in which `block` made other tensors than its own;
        the rest is float.
        """
        values = {**self._others[block.stop], **rows, **made}
        return Execution.at(self.traced, block.stop, values).advance(NO_EDITS).output()

    def _without_rows(self) -> dict[int, dict[str, Any]]:
        """Return what is alive in front of each block, and behind the last, besides rows of samples:
        constants that steps made, and sizes.
        """
        depends = _depending(self.traced)
        execution = Execution(self.traced, [tensor[: self.size] for tensor in self.inputs])
        found: dict[int, dict[str, Any]] = {}
        with torch.no_grad():
            for position in (0, *(block.stop for block in self.blocks)):
                values = execution.advance(NO_EDITS, position).values
                found[position] = {
                    name: value
                    for name, value in values.items()
                    if not isinstance(value, Tensor) or name not in depends
                }
        return found


def _in_memory(like: Tensor, count: int) -> Tensor:
    return torch.empty((count, *like.shape[1:]), dtype=like.dtype, device=like.device, memory_format=order_of(like))


def _in_a_file(like: Tensor, count: int) -> Tensor:
    """Return a tensor on the CPU whose pages are those of a file without a name."""
    with tempfile.NamedTemporaryFile(prefix="smpq-") as file:
        flat = torch.from_file(file.name, shared=True, size=like[:1].numel() * count, dtype=like.dtype)
    if order_of(like) == torch.channels_last:
        _, channels, height, width = like.shape
        return flat.view(count, height, width, channels).permute(0, 3, 1, 2)
    return flat.view(count, *like.shape[1:])


def _depending(traced: TracedModel) -> set[str]:
    """Return the inputs, and the steps that depend on them."""
    found = set(traced.inputs)
    for node in traced.steps:
        if any(argument.name in found for argument in node.all_input_nodes):
            found.add(node.name)
    return found


def _first(batches: Iterable[Batch], samples: int, fixed: int | None) -> tuple[list[Tensor], Any]:
    """Return the inputs and the target of the first samples, and look at no batch behind them:
    of batches of `fixed` samples where that is the only size, whose other axes are those of the first one.
    """
    kept: list[Batch] = []
    shapes, count = None, 0
    for batch in batches:
        size, found = len(batch.inputs[0]), [tensor.shape[1:] for tensor in batch.inputs]
        shapes = shapes or found
        if fixed in (None, size) and shapes == found:
            kept.append(batch)
            count += size
        if count >= samples:
            break
    if not kept:
        raise UserError("no calibration batch has the size that the network takes: it cannot be reconstructed")
    columns = zip(*(batch.inputs for batch in kept), strict=True)
    return [torch.cat(list(column))[:samples] for column in columns], _target(kept)


def _target(batches: Sequence[Batch]) -> Any:
    try:
        if all(has_rows(batch.target, len(batch.inputs[0])) for batch in batches):
            return joined([batch.target for batch in batches])
    except (KeyError, RuntimeError, TypeError, ValueError):
        pass
    raise UserError(
        "the task's divergence() takes the target, and the targets of the calibration batches cannot be cut into "
        "samples: let them be tensors, arrays or lists with one row a sample, or dicts of those"
    )
