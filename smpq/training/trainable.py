"""The folded graph made trainable: BatchNorm is put back behind the layers that took it in, and quantisers that learn
are attached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calib.formats.quantizers import QuantizedWeight
from calib.network.execution import Edit, Edits, ordered
from calib.network.fold import Folded
from calib.network.graph import TracedModel
from calib.network.nodes import module_path
from calib.network.order import fastest_order
from calib.network.units import Unit
from smpq.training.lsq import LearnedWeight, TrainedQuantizer
from smpq.training.placing import CPU, graph_on

_SMALLEST_GAMMA = 1e-3
"""Of the mean magnitude in its layer: a channel that BatchNorm multiplies by less could not be folded without losing
its integers.
"""
_DEFAULT_MOMENTUM = 0.1


@dataclass(frozen=True)
class Groups:
    """The parameters by how they are trained: `weights` have two axes or more; `others` are biases, gains and offsets
    of norms.
    """

    weights: list[nn.Parameter]
    others: list[nn.Parameter]
    quantizers: list[nn.Parameter]


class TrainableGraph(nn.Module):
    """A traced, folded model whose every parameter can be trained, with the BatchNorm of each unit unfolded again.

    1. `weights[unit path]` is the leaf that is trained; behind its BatchNorm a unit's weight is the folded one divided
       by `factor(path)` `[out]`, which is positive: a channel that BatchNorm multiplied by a negative number has its
       weight, its mean and that number turned round. Integers of the weight therefore stay the same when BatchNorm is
       folded.
    2. Without quantisers, in eval mode, it computes what the folded model does. `attach` puts quantisers on weights and
       tensors.
    3. In training mode BatchNorm uses the statistics of the batch and updates its own; `estimate_statistics` measures
       them afresh.
    4. Parameters, quantisers and results are on `device`; inputs are taken there. The model and `traced` stay where
       they are.
    5. It works in channels-last order where the graph allows that, which is up to twice as fast on a CPU.
    """

    def __init__(
        self,
        traced: TracedModel,
        units: Sequence[Unit],
        original: nn.Module,
        folded: Sequence[Folded],
        device: str = CPU,
    ) -> None:
        """`original` is the model before folding and `folded` what `trace_folded` said about it; neither is
        changed.
        """
        super().__init__()
        self.traced = traced
        self.placed = graph_on(traced, device)
        self.device = device
        self.units = tuple(units)
        self._order = fastest_order(traced, traced.example)
        modules = {pair.layer: original.get_submodule(pair.norm) for pair in folded}
        norms = {layer: module for layer, module in modules.items() if isinstance(module, _BatchNorm)}
        self._leaves = nn.ParameterDict()
        self._norms = nn.ModuleDict()  # by graph name of the weight
        self._constants: dict[str, Tensor] = {}
        for node in leaf_names(traced):
            self._leaves[node] = nn.Parameter(ordered(self.placed.state[node].clone(), self._order))
        self._unfolded: dict[str, str] = {}
        called = {unit.path: [module_path(traced.producer(call)) for call in unit.calls] for unit in self.units}
        counts = Counter(path for paths in called.values() for path in paths)
        for unit in self.units:
            layer = next(iter(called[unit.path]), "")
            # of a module that multiplies twice nobody knows behind which layer the norm was
            if layer in norms and counts[layer] == len(unit.calls) == 1 and unit.bias is not None:
                self._unfold(unit, norms[layer])
        self.weights: dict[str, nn.Parameter] = {unit.path: self._leaves[unit.weight] for unit in self.units}
        self._frozen_state = {name: ordered(tensor, self._order) for name, tensor in self.placed.state.items()}
        self._quantizers = nn.ModuleList()
        self._weight_quantizers: dict[str, TrainedQuantizer] = {}
        self._sources: dict[str, Edit] = {}
        self._edges: dict[tuple[str, str], Edit] = {}
        self.attach({}, {}, {})

    def attach(
        self,
        weights: Mapping[str, TrainedQuantizer],
        sources: Mapping[str, TrainedQuantizer],
        edges: Mapping[tuple[str, str], TrainedQuantizer],
    ) -> None:
        """Replace all quantisers: by unit path, by tensor for all of its readers, and by (tensor, reader); graph names
        as in Edits.

        A unit's quantiser is given the unfolded weight. One object may stand in several places.
        """
        self._weight_quantizers = {unit.weight: weights[unit.path] for unit in self.units if unit.path in weights}
        self._sources = dict(sources)
        self._edges = dict(edges)
        for weight, call in self._unfolded.items():
            self._sources[call] = _behind(self._norms[weight], sources.get(call))
        distinct = {id(module): module for module in (*weights.values(), *sources.values(), *edges.values())}
        self._quantizers = nn.ModuleList(distinct.values()).to(self.device)
        self._quantizers.train(self.training)

    def run(self, inputs: Sequence[Tensor]) -> Any:
        """Return what the model's `forward` would for one batch; gradients are recorded unless torch.no_grad is on."""
        parameters: dict[str, Tensor] = {**self._constants, **self._leaves}
        for weight, quantizer in self._weight_quantizers.items():
            parameters[weight] = quantizer(parameters[weight])
        edits = Edits(self._sources, self._edges, parameters)
        return self.placed.run(self._inputs(inputs), edits, gradient=torch.is_grad_enabled())

    def reference(self, inputs: Sequence[Tensor]) -> Any:
        """Return what the float model that was given computes; it is never changed, and no gradient is recorded."""
        return self.placed.run(self._inputs(inputs), Edits(parameters=self._frozen_state))

    def _inputs(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return [ordered(x.to(self.device), self._order) for x in inputs]

    def groups(self) -> Groups:
        """Return all parameters that are trained, each once."""
        own = [*self._leaves.values(), *self._norms.parameters()]
        return Groups(
            [p for p in own if p.dim() > 1], [p for p in own if p.dim() <= 1], list(self._quantizers.parameters())
        )

    def project(self) -> None:
        """Clamp step sizes and BatchNorm scales to small positive values. Call it after every step of the optimiser."""
        for norm in self._own_norms():
            norm.project()
        for quantizer in self.quantizers():
            quantizer.project()

    @contextmanager
    def batch_statistics(self) -> Iterator[None]:
        """Let BatchNorm use the statistics of each batch, as in training, and keep its own as they are."""
        norms, was_training = self._own_norms(), self.training
        before = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        self.train()
        try:
            yield
        finally:
            for norm, momentum in zip(norms, before, strict=True):
                norm.momentum = momentum
            self.train(was_training)

    def estimate_statistics(self, batches: Iterable[Sequence[Tensor]]) -> None:
        """Set the mean and variance of every BatchNorm to their averages over `batches` of inputs; nothing else
        changes.
        """
        if not self.normalises:
            return
        with self.batch_statistics(), torch.no_grad():
            for index, inputs in enumerate(batches):
                for norm in self._own_norms():
                    norm.momentum = 1.0 / (index + 1)
                self.run(inputs)

    @property
    def normalises(self) -> bool:
        """Whether it has a BatchNorm, which needs batches of two samples or more while it is trained."""
        return bool(self._norms)

    def _own_norms(self) -> list[_Norm]:
        return [norm for norm in self._norms.values() if isinstance(norm, _Norm)]

    def factor(self, path: str) -> Tensor:
        """Return `[out]`, what a unit's weight is multiplied by when its BatchNorm is folded: positive, ones when it
        has none.
        """
        weight = next(unit.weight for unit in self.units if unit.path == path)
        if weight not in self._norms:
            return torch.ones(len(self._leaves[weight]), device=self.device)
        norm = self._norms[weight]
        assert isinstance(norm, _Norm)
        return norm.factor().float()

    def learned(self, path: str) -> LearnedWeight:
        """Return the quantiser of a unit that has a LearnedWeight."""
        quantizer = self._weight_quantizers[next(unit.weight for unit in self.units if unit.path == path)]
        assert isinstance(quantizer, LearnedWeight)
        return quantizer

    def quantizers(self) -> list[TrainedQuantizer]:
        """Return all quantisers, each once."""
        return [module for module in self._quantizers if isinstance(module, TrainedQuantizer)]

    def quantized(self, path: str) -> QuantizedWeight:
        """Return the integers of a unit that has a LearnedWeight, with the steps they have when BatchNorm is folded."""
        return self.learned(path).quantized(self.weights[path], self.factor(path))

    def fold(self) -> dict[str, Tensor]:
        """Return parameter name of the folded model -> float tensor with BatchNorm folded in, weights not rounded; all
        are copies.
        """
        folded = {name: leaf.detach().clone() for name, leaf in self._leaves.items()}
        for unit in self.units:
            if unit.weight in self._unfolded:
                norm = self._norms[unit.weight]
                assert isinstance(norm, _Norm)
                assert unit.bias is not None
                folded[unit.weight] = (
                    folded[unit.weight].double() * _spread(norm.factor(), folded[unit.weight])
                ).float()
                folded[unit.bias] = norm.offset().float()
        return {self.traced.parameter_names[node]: tensor.contiguous() for node, tensor in folded.items()}

    def _unfold(self, unit: Unit, module: nn.Module) -> None:
        assert unit.bias is not None
        weight, bias = self.placed.state[unit.weight], self.placed.state[unit.bias]
        norm = _Norm(module, self.traced.state[unit.bias]).to(self.device)
        unfolded = (weight.double() / _spread(norm.factor(), weight)).float()
        self._norms[unit.weight] = norm
        self._leaves[unit.weight] = nn.Parameter(ordered(unfolded, self._order))
        del self._leaves[unit.bias]
        self._constants[unit.bias] = torch.zeros_like(bias)
        self._unfolded[unit.weight] = unit.calls[0]


def leaf_names(traced: TracedModel) -> dict[str, str]:
    """Return graph name -> parameter name of all that is trained: float parameters that something reads."""
    trained = {name for name, _ in traced.module.named_parameters()}
    return {
        node: name
        for node, name in traced.parameter_names.items()
        if name in trained and traced.nodes[node].users and traced.state[node].is_floating_point()
    }


class _Norm(nn.Module):
    """BatchNorm with a positive gain, such that it gives the folded layer's result when it follows weight / factor
    without a bias.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, module: Any, folded_bias: Tensor) -> None:
        super().__init__()
        var = module.running_var.detach().double()
        gain = torch.ones_like(var) if module.weight is None else module.weight.detach().double().abs()
        offset = torch.zeros_like(var) if module.bias is None else module.bias.detach().double()
        self._smallest = float(gain.mean()) * _SMALLEST_GAMMA or _SMALLEST_GAMMA
        gain = gain.clamp(min=self._smallest)
        self.eps = float(module.eps)
        self.momentum = _DEFAULT_MOMENTUM if module.momentum is None else float(module.momentum)
        mean = (offset - folded_bias.double()) * (var + self.eps).sqrt() / gain
        self.weight = nn.Parameter(gain.float())
        self.bias = nn.Parameter(offset.float())
        self.register_buffer("running_mean", mean.float())
        self.register_buffer("running_var", var.float())

    def forward(self, tensor: Tensor) -> Tensor:
        return F.batch_norm(
            tensor, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )

    def factor(self) -> Tensor:
        """Return `[out]` float64, gain / standard deviation."""
        return (self.weight.double() / (self.running_var.double() + self.eps).sqrt()).detach()

    def offset(self) -> Tensor:
        """Return `[out]` float64, the bias that is left after folding."""
        return (self.bias.double() - self.running_mean.double() * self.factor()).detach()

    def project(self) -> None:
        with torch.no_grad():
            self.weight.clamp_(min=self._smallest)


def _behind(norm: nn.Module, quantizer: TrainedQuantizer | None) -> Edit:
    if quantizer is None:
        return norm
    return lambda tensor: quantizer(norm(tensor))


def _spread(factor: Tensor, weight: Tensor) -> Tensor:
    return factor.reshape(-1, *[1] * (weight.dim() - 1))
