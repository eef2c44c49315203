"""Residual adds: which layer computes each of them, and which operand is the skip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from calib.network.graph import TracedModel
from calib.network.moves import MOVES, keeps_grid
from calib.network.nodes import are_alike, is_float, operator_name
from calib.network.units import Unit

_POINTWISE = {
    "relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "leaky_relu", "prelu", "elu", "gelu", "silu",
    "mish", "sigmoid", "tanh",
    "hardsigmoid", "hardswish", "softplus", "dropout", "mul", "div", "add", "sub", "neg",
}  # fmt: skip
"""Operators on one element after the other, which a compiler computes in the kernel that makes their input."""


@dataclass(frozen=True)
class ResidualAdd:
    """An add that the kernel of `layer` computes, when it reads the other operand, `skip`, as well.

    `layer` and `writer` are calls of units, the other names are tensors. `skip` may be read as integers on the grid of
    `grid`, a tensor that it only moves values of, or itself. `readers` are the units' calls that read `grid`. `writer`
    is the convolution whose kernel makes the skip; None when it is computed by something else.
    """

    name: str
    layer: str
    skip: str
    grid: str
    readers: tuple[str, ...]
    writer: str | None


def residual_adds(traced: TracedModel, units: Sequence[Unit]) -> tuple[ResidualAdd, ...]:
    """Return the adds of two computed tensors of one shape of which a convolution or linear layer makes one, in graph
    order.

    1. A convolution makes what it writes, what follows element by element or by moves, and the adds that its kernel
       computes. A linear layer makes what it writes, and its add counts only where a unit reads the skip: the sums of a
       transformer stay float.
    2. A layer can compute the add only if the skip does not depend on it. Where both operands would do, a layer that
       computes no other add is taken; then the skip is the operand that a unit reads too, else the one behind fewer
       operators, else the first.
    3. Constants and parameters are no operands: what is added to them is handed on. An input of the model is one, which
       no kernel writes.

    Needs the shapes of the trace, which a pickled copy does not have.
    """
    return tuple(_Flow(traced, units).adds())


class _Flow:
    """What is known of each tensor, filled in graph order."""

    def __init__(self, traced: TracedModel, units: Sequence[Unit]) -> None:
        self._traced = traced
        self._kinds = {call: unit.operator for unit in units for call in unit.calls}
        self._bits = {call: 1 << number for number, call in enumerate(self._kinds)}
        self._behind: dict[str, int] = {}
        """Bits of the calls that a tensor depends on."""
        self._depth: dict[str, int] = {}
        """Operators on the longest way from an input."""
        self._writer: dict[str, str] = {}
        """The convolution whose kernel makes a tensor."""
        self._taken: set[str] = set()
        """Layers that compute an add already."""

    def adds(self) -> list[ResidualAdd]:
        found = []
        for node in self._traced.graph.nodes:
            operands = [operand for operand in node.all_input_nodes if operand.name not in self._traced.state]
            self._behind[node.name] = self._bits.get(node.name, 0)
            for operand in operands:
                self._behind[node.name] |= self._behind[operand.name]
            self._depth[node.name] = 1 + max((self._depth[operand.name] for operand in operands), default=-1)
            add = self._residual(node, operands)
            writer = add.layer if add is not None else self._handed_on(node, operands)
            if writer is not None and "conv" in self._kinds[writer]:
                self._writer[node.name] = writer
            if add is not None and (add.readers or add.writer is not None):
                found.append(add)
        return found

    def _handed_on(self, node: fx.Node, operands: Sequence[fx.Node]) -> str | None:
        """Return the convolution that makes a tensor: itself, or the one that makes all that it is computed from,
        element by element.
        """
        if node.name in self._kinds:
            return node.name
        writers = {self._writer.get(operand.name) for operand in operands}
        if operator_name(node) in MOVES | _POINTWISE and len(writers) == 1:
            return writers.pop()
        return None

    def _residual(self, node: fx.Node, operands: Sequence[fx.Node]) -> ResidualAdd | None:
        if (
            operator_name(node) != "add"
            or len(operands) != 2
            or node.kwargs.get("alpha", 1) != 1
            or not is_float(node)
            or not all(are_alike(node, operand) for operand in operands)
        ):
            return None
        pairs = [
            (layer, skip) for main, skip in (operands[::-1], operands) if (layer := self._layer(main, skip)) is not None
        ]
        if not pairs:
            return None
        convolutions = [pair for pair in pairs if "conv" in self._kinds[pair[0]]]
        # min() returns the first of equals: of two skips that are alike it is the first operand
        layer, skip = min(
            convolutions or pairs,
            key=lambda pair: (pair[0] in self._taken, not self._grid(pair[1])[1], self._depth[pair[1].name]),
        )
        self._taken.add(layer)
        grid, readers = self._grid(skip)
        writer = self._writer.get(skip.name) if "conv" in self._kinds[layer] else None
        return ResidualAdd(node.name, layer, skip.name, grid, readers, writer)

    def _layer(self, main: fx.Node, skip: fx.Node) -> str | None:
        """Return the layer whose kernel could add `skip` to `main`."""
        layer = self._writer.get(main.name, main.name)
        if layer not in self._kinds or self._behind[skip.name] & self._bits[layer]:
            return None
        return layer

    def _grid(self, skip: fx.Node) -> tuple[str, tuple[str, ...]]:
        """Return the nearest tensor with the skip's values that units read, with their calls; else the first one that
        has them all.
        """
        node = skip
        while True:
            readers = tuple(user.name for user in node.users if user.name in self._kinds and user.args[0] is node)
            moved = node.all_input_nodes[:1]
            if readers or not keeps_grid(node) or not moved or moved[0].name in self._traced.state:
                return node.name, readers
            node = moved[0]
