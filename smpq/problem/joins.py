"""Where the results of several layers meet, and which tensors hand integers from one layer to the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from calib.network.clips import clipped, is_clip
from calib.network.graph import TracedModel
from calib.network.moves import MOVES, is_averaged
from calib.network.nodes import JOINS, operator_name
from calib.network.residual import ResidualAdd, residual_adds
from smpq.problem.policy import Group, Join
from smpq.quantized.plan import QdqRules, gemm_calls


@dataclass(frozen=True)
class Edge:
    """A tensor of `elements` numbers a sample that a group or join makes and another one reads."""

    first: str
    second: str
    elements: int


def find_joins(traced: TracedModel, groups: Sequence[Group], rules: QdqRules) -> tuple[Join, ...]:
    """Return the sums and concatenations that may be computed or read as integers, in graph order.

    1. With `rules.outputs`: every operand comes from a convolution, or from another join, and a unit reads the result,
       or averages alone do: its operands then count as its readers.
    2. With `rules.skips`: the residual adds (`calib.network.residual`). The layer that computes the add counts as the
       operand. The layers that read the skip, and the convolution that makes it, count as readers: the add reads
       integers when one of them has integers.
    3. Otherwise nothing: a policy has no choice there.
    """
    if rules.outputs:
        return tuple(_Flow(traced, groups).merges())
    return tuple(join for join, _ in _skips(traced, groups)) if rules.skips else ()


def find_edges(traced: TracedModel, groups: Sequence[Group], rules: QdqRules) -> tuple[Edge, ...]:
    """Return the tensors between convolutions or joins and what reads them: where only one of the two works on
    integers, it is converted.

    Linear layers with one row a sample and a bias hand on integers to units, others floats in every format, so nothing
    starts at them; and a tensor that another operator computes is float. With `rules.skips`, the skip of each residual
    add is one, from the first reader of the join to the join.
    """
    joins = find_joins(traced, groups, rules) if rules.outputs else ()
    found = list(_Flow(traced, groups).edges({join.name for join in joins}))
    if rules.skips:
        found += [
            Edge(join.readers[0], join.name, traced.elements_of_one(traced.nodes[add.skip].meta["val"]))
            for join, add in _skips(traced, groups)
        ]
    return tuple(found)


def _skips(traced: TracedModel, groups: Sequence[Group]) -> Iterator[tuple[Join, ResidualAdd]]:
    group_of = {call: group.name for group in groups for unit in group.units for call in unit.calls}
    for add in residual_adds(traced, [unit for group in groups for unit in group.units]):
        readers = [*add.readers, *([add.writer] if add.writer is not None else [])]
        yield Join(add.name, (group_of[add.layer],), tuple(dict.fromkeys(group_of[call] for call in readers))), add


class _Flow:
    def __init__(self, traced: TracedModel, groups: Sequence[Group]) -> None:
        self._traced, self._nodes = traced, list(traced.graph.nodes)
        self._reads = {call: group.name for group in groups for unit in group.units for call in unit.calls}
        self._makes = {
            call: group.name
            for group in groups
            for unit in group.units
            if "conv" in unit.operator
            for call in unit.calls
        }
        rows = gemm_calls(traced, [unit for group in groups for unit in group.units])
        self._hands_on = {call: self._reads[call] for call in rows}

    def merges(self) -> Iterator[Join]:
        owner: dict[str, str] = {}
        for node in self._nodes:
            operands = _merged(node)
            self._hand_on(node, owner)
            if operands and all(operand.name in owner for operand in operands):
                makers = tuple(dict.fromkeys(owner[operand.name] for operand in operands))
                readers = tuple(dict.fromkeys(self._readers(clipped(node))))
                if not readers and is_averaged(clipped(node)):
                    readers = makers
                if readers:
                    yield Join(node.name, makers, readers)
                    owner[node.name] = node.name

    def edges(self, joins: set[str]) -> Iterator[Edge]:
        owner: dict[str, str] = {}
        found: dict[tuple[str, str], int] = {}
        for node in self._nodes:
            self._hand_on(node, owner)
            if node.name in self._hands_on:
                owner[node.name] = self._hands_on[node.name]
            reader = self._reads.get(node.name) or (node.name if node.name in joins else None)
            operands = _merged(node) if node.name in joins else node.all_input_nodes[:1]
            for operand in operands if reader else ():
                first = owner.get(operand.name)
                if first is not None and first != reader:
                    elements = self._traced.elements_of_one(operand.meta["val"])
                    found[first, str(reader)] = found.get((first, str(reader)), 0) + elements
            if node.name in joins:
                owner[node.name] = node.name
        for (first, second), elements in found.items():
            yield Edge(first, second, elements)

    def _hand_on(self, node: fx.Node, owner: dict[str, str]) -> None:
        """Say whose integers a node's result would be: a convolution's own, or those of what it only moves or clips at
        zero.
        """
        if node.name in self._makes:
            owner[node.name] = self._makes[node.name]
        elif (
            (operator_name(node) in MOVES or is_clip(node))
            and node.all_input_nodes
            and node.all_input_nodes[0].name in owner
        ):
            owner[node.name] = owner[node.all_input_nodes[0].name]

    def _readers(self, result: fx.Node) -> Iterator[str]:
        for user in result.users:
            if user.name in self._reads:
                yield self._reads[user.name]


def _merged(node: fx.Node) -> list[fx.Node]:
    operands = node.all_input_nodes
    return operands if operator_name(node) in JOINS and len(operands) > 1 else []
