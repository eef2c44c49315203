"""The products of attention: what they read, and which layers read their result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from calib.formats.quantizers import Scheme
from calib.network.graph import TracedModel
from calib.network.nodes import MOVES_ALL, is_float, module_path, operator_name
from calib.network.spelled_attention import why_fused
from calib.network.units import Skipped, Unit

_SOFTMAX = {"softmax", "_softmax", "_safe_softmax"}
_PRODUCTS = {"matmul", "bmm", "einsum"}
_OPERANDS = 2
_PARTS = {"select", "slice", "getitem", "unbind", "split", "split_with_sizes", "chunk", "cat"}
_COPIES = {"expand", "repeat", "repeat_interleave", "to", "_to_copy", "dropout"}
_ON_SHARES = MOVES_ALL | _COPIES | {"masked_fill", "where"}
"""What may stand between a softmax and the product that reads it; it keeps values between 0 and 1."""
_ON_SCORES = _ON_SHARES | {"mul", "div", "add", "sub", "neg", "tanh", "clamp", "maximum", "minimum"}
"""What may stand between a product and the softmax: scales, masks, biases, soft limits."""
_ON_RESULTS = MOVES_ALL | _PARTS | _COPIES
"""What may stand between the second product and the layers that read it; it changes no value."""


@dataclass(frozen=True)
class Attention:
    """The products around one softmax. `operands` are (tensor, product that reads it), all names of graph nodes;
    `shares` those of the tensors that hold what softmax gave; `readers` the calls of units that read the result.

    `path` is that of the module.
    """

    path: str
    operands: tuple[tuple[str, str], ...]
    shares: tuple[str, ...]
    readers: tuple[str, ...]

    def scheme(self, tensor: str, usual: Scheme) -> Scheme:
        """Return how integers stand for an operand: those of shares, which are never negative, have no sign."""
        return "affine" if tensor in self.shares else usual


def find_attention(traced: TracedModel, units: Sequence[Unit]) -> tuple[tuple[Attention, ...], tuple[Skipped, ...]]:
    """Return the attention of a trace in graph order, and what of it stays in floating point, and why.

    1. Attention is a softmax that a product of two computed tensors reads (matmul, bmm, einsum). What stands between
       may move, mask or cast values.
    2. Its other products are those that the scores are made of: behind the softmax, through scales, masks and sums. One
       whose scores come from layers has the one product alone.
    3. Its readers are the layers that read the result, whole or in parts. Where nothing but another operator reads it,
       no layer says how many bits the products have: they stay in floating point.
    4. Parameters that are operands stay in floating point too. A product that two softmaxes share belongs to the first.

    Needs the shapes of the trace, which a pickled copy does not have. Ours; quantised are the tensors that FIMA-Q (Wu
    et al., arXiv 2506.11543) quantises.
    """
    calls = {call for unit in units for call in unit.calls}
    found: list[Attention] = []
    taken: set[tuple[str, str]] = set()
    skipped: list[Skipped] = []
    for node in traced.steps:
        reason = why_fused(node)
        if reason is not None:
            skipped.append(_left_float(node, f"{reason}: its products stay in floating point"))
        mixing = dict(_products_of(node)) if operator_name(node) in _SOFTMAX else {}
        if not mixing:
            continue
        readers = list(dict.fromkeys(call for product in mixing for call in _readers(product, calls)))
        if not readers:
            skipped.append(_left_float(node, "no layer reads its result: its products stay in floating point"))
            continue
        products = dict.fromkeys([*_scores(node), *mixing])
        operands = [
            (operand.name, product.name)
            for product in products
            for operand in dict.fromkeys(product.all_input_nodes)
            if operand.name not in traced.state and (operand.name, product.name) not in taken
        ]
        taken.update(operands)
        shares = tuple(dict.fromkeys(operand.name for operand in mixing.values()))
        found.append(Attention(module_path(node) or node.name, tuple(operands), shares, tuple(readers)))
    return tuple(found), tuple(skipped)


def _left_float(node: fx.Node, reason: str) -> Skipped:
    return Skipped(module_path(node) or node.name, operator_name(node), reason)


def _products_of(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yield the products that read the values of a node, each with the operand that holds them."""
    for user in node.users:
        if _is_product(user):
            yield user, node
        elif operator_name(user) in _ON_SHARES and is_float(user):
            yield from _products_of(user)


def _scores(softmax: fx.Node) -> list[fx.Node]:
    """Return the products that a softmax reads, in the order in which they are found."""
    found: dict[fx.Node, None] = {}
    left, seen = list(softmax.all_input_nodes), set[fx.Node]()
    while left:
        node = left.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if _is_product(node):
            found[node] = None
        elif operator_name(node) in _ON_SCORES:
            left += node.all_input_nodes
    return list(found)


def _readers(node: fx.Node, calls: set[str]) -> Iterator[str]:
    """Yield the calls of units that read the values of a node, or a part of them."""
    for user in node.users:
        if user.name in calls and user.args[0] is node:
            yield user.name
        elif operator_name(user) in _ON_RESULTS:
            yield from _readers(user, calls)


def _is_product(node: fx.Node) -> bool:
    """Whether a node multiplies two float tensors, or one with itself."""
    if operator_name(node) not in _PRODUCTS:
        return False
    operands = node.args[1] if operator_name(node) == "einsum" else node.args
    return len(operands) == _OPERANDS and all(map(is_float, node.all_input_nodes))  # type: ignore[arg-type]
