"""Write every product with a parameter as a linear layer: what multiplies by one matrix is one, however it is spelt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from calib.network.einsums import spell_out_einsums
from calib.network.nodes import become, insert_call, moved_from, operator_name, source_of

Arrangement = Callable[[Tensor], Tensor]
"""Returns a weight `[out, in]` from the parameter, whose values it only moves."""

_ATEN = torch.ops.aten


def write_as_linear(program: ExportedProgram, parameters: Mapping[str, str]) -> dict[str, Arrangement]:
    """Make `linear` of `addmm`, `mm`, `matmul` and `einsum` with one parameter operand, in place.

    `parameters` is graph name -> name of the parameter. Returns graph name -> how its tensor, which is now stored as
    `[out, in]`, is made of the parameter, for those that are not stored as they are.

    1. The parameter stands on the right and is one matrix, transposed, reshaped or not; what transposes it goes away.
    2. A parameter that something else reads too, or that is used in two ways, keeps its layout: only products that want
       it so become linear layers.
    3. Left alone: sums with factors (`addmm` with beta or alpha), batches of matrices, matrices on the left.
    """
    spell_out_einsums(program.graph, set(parameters))
    found: dict[fx.Node, list[_Product]] = defaultdict(list)
    for node in program.graph.nodes:
        product = _product(node, parameters)
        if product is not None:
            found[product.parameter].append(product)
    arranged = {}
    for parameter, products in found.items():
        kept, changed = _usable(parameter, products)
        for product in kept:
            _replace(program.graph, product)
        if changed is not None:
            name = parameters[parameter.name]
            before = program.state_dict[name]
            program.state_dict[name] = nn.Parameter(changed(before.detach()).contiguous(), before.requires_grad)
            parameter.meta["val"] = changed(parameter.meta["val"]).contiguous()
            arranged[parameter.name] = changed
    program.graph_module.recompile()
    return arranged


def parameter_from_weight(weight: Tensor, arrange: Arrangement, shape: Sequence[int]) -> Tensor:
    """Return the parameter, of `shape`, that `arrange` makes a weight of."""
    # the gradient of moves puts each value back where it came from
    with torch.enable_grad():
        parameter = torch.empty(shape, dtype=weight.dtype, requires_grad=True)
        (found,) = torch.autograd.grad(arrange(parameter), parameter, weight)
    return found


@dataclass(frozen=True)
class _Product:
    """`node` multiplies `data` by what `moves` make of `parameter`, and adds `bias`."""

    node: fx.Node
    data: fx.Node
    parameter: fx.Node
    moves: tuple[fx.Node, ...]
    swapped: bool
    bias: fx.Node | None = None

    def arrange(self, tensor: Tensor) -> Tensor:
        """Return the weight `[out, in]`."""
        for move in self.moves:
            tensor = move.target(tensor, *move.args[1:], **move.kwargs)  # type: ignore[operator]
        return tensor.t() if self.swapped else tensor

    @property
    def as_it_is(self) -> bool:
        """Whether the parameter is the weight already."""
        plain = torch.empty(self.parameter.meta["val"].shape, device="meta")
        weight = self.arrange(plain)
        alike = (weight.shape, weight.stride(), weight.storage_offset()) == (plain.shape, plain.stride(), 0)
        # is it a view?
        return alike and weight.untyped_storage()._cdata == plain.untyped_storage()._cdata  # noqa: SLF001

    def same(self, other: _Product) -> bool:
        """Whether both want the parameter in one layout."""
        ours, theirs = ([(move.target, *move.args[1:]) for move in each.moves] for each in (self, other))
        return self.swapped == other.swapped and ours == theirs


def _product(node: fx.Node, parameters: Mapping[str, str]) -> _Product | None:
    name, bias, swapped = operator_name(node), None, True
    if name in ("matmul", "mm"):
        data, weight = node.args
    elif name == "addmm" and set(node.kwargs.values()) <= {1}:
        bias, data, weight = node.args
    elif name == "linear":
        data, weight, *rest = node.args
        bias, swapped = (rest[0] if rest else None), False
    else:
        return None
    if not isinstance(data, fx.Node) or not isinstance(weight, fx.Node):
        return None
    parameter, moves = source_of(weight)
    matrix = weight.meta["val"].dim() == 2 and weight.meta["val"].is_floating_point() and data.meta["val"].dim() >= 2
    if (
        parameter.name not in parameters
        or not matrix
        or (name == "linear" and not moves)
        or source_of(data)[0].name in parameters
    ):
        return None
    assert bias is None or isinstance(bias, fx.Node)
    return _Product(node, data, parameter, moves, swapped, bias)


def _usable(parameter: fx.Node, products: Sequence[_Product]) -> tuple[Sequence[_Product], Arrangement | None]:
    """Return the products that can be linear layers, and the layout that the parameter gets, None for its own."""
    own = [product for product in products if product.as_it_is]
    readers = _readers(parameter)
    alone = readers == {product.node for product in products} and all(map(products[0].same, products))
    if own or not alone:
        return own, None
    return products, products[0].arrange


def _readers(node: fx.Node) -> set[fx.Node]:
    """Return what reads a tensor, through whatever only moves its values."""
    found: set[fx.Node] = set()
    for user in node.users:
        found |= {user} if moved_from(user) is None else _readers(user)
    return found


def _replace(graph: fx.Graph, product: _Product) -> None:
    """Turn the node into a linear layer, or into the sum of one and a bias that is not `[out]`."""
    node, bias = product.node, product.bias
    fits = bias is None or [str(size) for size in bias.meta["val"].shape] == [str(node.meta["val"].shape[-1])]
    arguments = (
        (product.data, product.parameter) if bias is None or not fits else (product.data, product.parameter, bias)
    )
    if fits:
        become(node, _ATEN.linear.default, arguments)
    else:
        weight = product.arrange(product.parameter.meta["val"])
        value = _ATEN.linear.default(product.data.meta["val"], weight)
        become(node, _ATEN.add.Tensor, (insert_call(graph, node, _ATEN.linear.default, arguments, value), bias))
    for move in reversed(product.moves):
        if not move.users:
            graph.erase_node(move)
