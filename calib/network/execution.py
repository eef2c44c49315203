"""One batch on its way through a traced graph: it can stop between two nodes, be forked, and go on under other
edits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from calib.network.graph import TracedModel

Edit = Callable[[Tensor], Tensor]
Observe = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class Edits:
    """Changes to one run of the graph; tensors and call sites are named by graph node.

    `sources` replaces a tensor for every consumer, `edges[(tensor, consumer)]` for one consumer, `parameters` replaces
    weights. Two consumers whose edge holds the same object share one result.
    """

    sources: Mapping[str, Edit] = field(default_factory=dict)
    edges: Mapping[tuple[str, str], Edit] = field(default_factory=dict)
    parameters: Mapping[str, Tensor] = field(default_factory=dict)


NO_EDITS = Edits()


class Execution:
    """The state of one batch before a step of the graph: the tensors that later steps still read.

    Memory is that of the live tensors; a fork shares them. The caller decides whether gradients are recorded.
    """

    def __init__(
        self,
        traced: TracedModel,
        inputs: Sequence[Tensor],
        edits: Edits = NO_EDITS,
        observe: Observe | None = None,
        order: torch.memory_format = torch.contiguous_format,
    ) -> None:
        """Read the inputs, in this `order` in memory; the first step comes next."""
        self._traced = traced
        self._edited: dict[tuple[str, int], Tensor] = {}
        self._values: dict[str, Any] = {}
        self.position = 0
        for name, given in zip(traced.inputs, inputs, strict=True):
            value = ordered(given, order)  # the trace may view what the module reshapes
            if observe is not None:
                observe(name, value)
            self._values[name] = edits.sources[name](value) if name in edits.sources else value

    @classmethod
    def at(cls, traced: TracedModel, position: int, values: Mapping[str, Any]) -> Execution:
        """Return an execution that stands in front of step `position`, with what later steps read by name."""
        other = object.__new__(cls)
        other._traced, other._edited, other._values, other.position = traced, {}, dict(values), position
        return other

    @property
    def values(self) -> Mapping[str, Any]:
        """What later steps read, by name: tensors and sizes."""
        return self._values

    def fork(self) -> Execution:
        """Return a second execution that stands at the same step; neither sees what the other does from here on."""
        other = object.__new__(Execution)
        other._traced = self._traced
        other._edited = dict(self._edited)
        other._values = dict(self._values)
        other.position = self.position
        return other

    def advance(self, edits: Edits, stop: int | None = None, observe: Observe | None = None) -> Execution:
        """Run the steps before `stop` (all of them when it is None) under `edits`; returns itself."""
        traced = self._traced
        by_consumer = _by_consumer(edits)
        last = len(traced.steps) if stop is None else stop
        for node in traced.steps[self.position : last]:
            changes = by_consumer.get(node.name)

            def read(argument: fx.Node, changes: Mapping[str, Edit] | None = changes) -> Any:
                return self._read(argument.name, edits, changes)

            result = node.target(
                *fx.node.map_arg(node.args, read), **(fx.node.map_arg(node.kwargs, read) if node.kwargs else {})
            )  # type: ignore[operator]
            if observe is not None and isinstance(result, Tensor):
                observe(node.name, result)
            self._values[node.name] = edits.sources[node.name](result) if node.name in edits.sources else result
            for dead in traced.last_uses.get(node.name, ()):
                self._values.pop(dead, None)
                for key in [key for key in self._edited if key[0] == dead]:
                    del self._edited[key]
        self.position = max(self.position, last)
        return self

    def output(self) -> Any:
        """Return what the model's `forward` would return, after the last step."""
        flat = fx.node.map_arg(self._traced.output.args[0], lambda argument: self._read(argument.name, NO_EDITS, None))
        return pytree.tree_unflatten(list(flat), self._traced.out_spec)  # type: ignore[arg-type]

    def _read(self, name: str, edits: Edits, changes: Mapping[str, Edit] | None) -> Any:
        if name in self._traced.state:
            value = edits.parameters.get(name, self._traced.state[name])
            return value if changes is None or name not in changes else changes[name](value)
        if changes is None or name not in changes:
            return self._values[name]
        edit = changes[name]
        key = (name, id(edit))
        if key not in self._edited:
            self._edited[key] = edit(self._values[name])
        return self._edited[key]


def ordered(tensor: Tensor, order: torch.memory_format) -> Tensor:
    """Return the tensor with its axes in this order in memory, in the usual order where it has not four of them."""
    return tensor.contiguous(memory_format=order if tensor.dim() == 4 else torch.contiguous_format)


def signatures(traced: TracedModel, edits: Edits) -> list[tuple[int, ...]]:
    """Return for each step, and first of all for the inputs, which edit objects it depends on.

    Two runs compute the same tensors up to the first entry in which they differ, as long as both `Edits` are alive.
    """
    by_consumer = _by_consumer(edits)
    found = [tuple(id(edits.sources[name]) for name in traced.inputs if name in edits.sources)]
    for node in traced.steps:
        parts = [id(edits.parameters[a.name]) for a in node.all_input_nodes if a.name in edits.parameters]
        parts += [id(edit) for _, edit in sorted(by_consumer.get(node.name, {}).items())]
        if node.name in edits.sources:
            parts.append(id(edits.sources[node.name]))
        found.append(tuple(parts))
    return found


def _by_consumer(edits: Edits) -> dict[str, dict[str, Edit]]:
    found: dict[str, dict[str, Edit]] = {}
    for (tensor, consumer), edit in edits.edges.items():
        found.setdefault(consumer, {})[tensor] = edit
    return found
