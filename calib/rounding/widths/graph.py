"""Widths of MG-PTQ: a graph network over the columns of a weight says how many bits each block of them needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from calib.formats.mixed_widths import WIDTHS, bits_of_blocks
from calib.rounding.base import Moments
from calib.rounding.widths.base import errors_of_width, weights_of_errors, width_rule
from calib.rounding.widths.error import cheapest

_STEPS, _RATE, _HIDDEN, _PROJECTIONS, _DRAWS = 200, 0.01, 32, 8, 4
_LOOK_EVERY = 20
_HOTTEST, _COLDEST = 1.0, 0.5
_BUDGET = 3.0
"""What a bit of the average above or below its target counts, squared, against the error of equal widths."""
_NEVER = 1e9
_LARGEST = 50.0
"""Of a logarithm that the network sees."""


@width_rule("graph")
def widths_by_graph(weight: Tensor, moments: Moments, average: float, block: int) -> tuple[int, ...]:
    """Train a graph network on one layer to choose widths of little output error, and take the best of its choices.

    MG-PTQ, arXiv 2501.18154, whose abstract says: a graph neural network sees how columns depend on each other through
    the Cholesky factor U of the inverse second moments; an allocator chooses widths under an average, with an
    approximate gradient through the choice; the weight is rounded in blocks behind that. No code was published.

    Chosen: nodes are columns, with their second moment, 1 / U_jj^2, norm, errors in each width and some projections;
    edges are |U| of either direction above their mean, rows normalised; two layers of graph convolution, and a linear
    head whose logits are averaged over a block. Widths go from one below the average's whole bits to two above. The
    choice is Gumbel's softmax, hard forward and soft backward, drawn four times a step. The loss is the output error
    e H e' over that of equal widths, and the squared distance from the average. A sum over columns would not need a
    network: the rule `error` finds its least value exactly. Every 20 steps the most probable widths of the given sum
    are tried, and those of the least output error are taken.
    """
    base = math.floor(average)
    choices = [width for width in WIDTHS if base - 1 <= width <= base + 2]
    with torch.no_grad():
        weight = weight / (weight.abs().amax() or 1.0)  # what is learned does not depend on units
        second = moments.matrix[0].to(weight)
        importance = weights_of_errors(weight, moments)
        layer = _Layer(
            torch.stack([errors_of_width(weight, importance, width, block) for width in choices]),
            second / (second.diagonal().amax() or 1.0),
            choices,
            average,
            block,
        )
        seen, edges = _seen(weight, moments, layer.errors), _edges(weight, moments)
    with torch.enable_grad():
        return _trained(layer, seen, edges)


@dataclass(frozen=True)
class _Layer:
    """What is to be decided: `errors` `[widths, out, k]` of a weight in each of the `choices`, and `second` `[k, k]`
    moments.
    """

    errors: Tensor
    second: Tensor
    choices: list[int]
    average: float
    block: int

    @property
    def blocks(self) -> int:
        """How many blocks of columns the weight has."""
        return self.errors.shape[2] // self.block

    def output_error(self, chosen: Tensor) -> Tensor:
        """Return `[n]`, the squared error of the output for widths that are chosen `[n, blocks, widths]`."""
        left = torch.einsum("njc,coj->noj", chosen.repeat_interleave(self.block, dim=1), self.errors)
        return ((left @ self.second) * left).sum(dim=(1, 2))

    def likeliest(self, odds: Tensor) -> tuple[int, ...]:
        """Return the most probable widths of the sum that there is, by log-odds `[blocks, widths]`."""
        rows = [dict(zip(self.choices, row, strict=True)) for row in odds.tolist()]
        costs = [[-row[width] if width in row else _NEVER for width in WIDTHS] for row in rows]
        return cheapest(costs, bits_of_blocks(self.average, self.blocks))

    def one_hot(self, widths: tuple[int, ...]) -> Tensor:
        """Return `[1, blocks, widths]`."""
        numbers = torch.tensor([[self.choices.index(width) for width in widths]], device=self.errors.device)
        return functional.one_hot(numbers, len(self.choices)).to(self.errors)


def _seen(weight: Tensor, moments: Moments, errors: Tensor) -> Tensor:
    """Return `[k, features]` of each column, zero mean and unit variance over the columns."""
    generator = torch.Generator().manual_seed(0)
    projections = torch.randn(_PROJECTIONS, len(weight), generator=generator).to(weight) @ weight
    sizes = torch.stack(
        [
            torch.diagonal(moments.matrix[0]).to(weight),
            weights_of_errors(weight, moments)[0].to(weight),
            weight.square().sum(dim=0),
            *errors.square().sum(dim=1),
        ]
    )
    rows = torch.cat([sizes.log().clamp(-_LARGEST, _LARGEST), projections]).T
    return (rows - rows.mean(dim=0)) / rows.std(dim=0, correction=0).clamp(min=1e-6)


def _edges(weight: Tensor, moments: Moments) -> Tensor:
    """Return `[k, k]`, how much a column hears of the others; rows have the sum 1 or are empty."""
    columns = torch.arange(weight.shape[1], device=weight.device)[None]
    factor = moments.inverse_factor_of(columns)[0].to(weight).abs().fill_diagonal_(0)
    both = factor + factor.T
    strong = torch.where(both > both.mean(), both, torch.zeros_like(both))
    return strong / strong.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)


class _Columns(nn.Module):
    """A graph network whose output are logits `[k, widths]`."""

    def __init__(self, features: int, widths: int) -> None:
        super().__init__()
        inputs = (features, _HIDDEN)
        self.own = nn.ModuleList([nn.Linear(count, _HIDDEN) for count in inputs])
        self.heard = nn.ModuleList([nn.Linear(count, _HIDDEN, bias=False) for count in inputs])
        self.head = nn.Linear(_HIDDEN, widths)

    def forward(self, seen: Tensor, edges: Tensor) -> Tensor:
        for own, heard in zip(self.own, self.heard, strict=True):
            seen = torch.relu(own(seen) + heard(edges @ seen))
        logits: Tensor = self.head(seen)
        return logits


def _trained(layer: _Layer, seen: Tensor, edges: Tensor) -> tuple[int, ...]:
    """Return the best widths that a network chose while it was trained on one layer."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network = _Columns(seen.shape[1], len(layer.choices))
    widths = torch.tensor(layer.choices, dtype=torch.float32)
    with torch.no_grad():
        network.head.bias.copy_(-(widths - layer.average).abs())
    network, widths = network.to(seen.device), widths.to(seen.device)
    optimizer = torch.optim.Adam(network.parameters(), _RATE)
    generator = torch.Generator().manual_seed(0)
    equal = layer.one_hot((math.floor(layer.average),) * layer.blocks)
    whole = layer.output_error(equal).clamp(min=torch.finfo(seen.dtype).tiny)
    best: tuple[int, ...] = ()
    least = math.inf
    for step in range(_STEPS + 1):
        odds = network(seen, edges).unflatten(0, (-1, layer.block)).mean(dim=1).log_softmax(dim=1)
        if step % _LOOK_EVERY == 0:
            found = layer.likeliest(odds.detach())
            error = float(layer.output_error(layer.one_hot(found)))
            if not best or error < least:
                best, least = found, error
        uniform = torch.rand((_DRAWS, *odds.shape), generator=generator).clamp(1e-6, 1 - 1e-6).to(odds)
        heat = _HOTTEST * (_COLDEST / _HOTTEST) ** (step / _STEPS)
        soft = ((odds - (-uniform.log()).log()) / heat).softmax(dim=2)
        chosen = functional.one_hot(soft.argmax(dim=2), len(layer.choices)) + (soft - soft.detach())
        off = (chosen @ widths).mean(dim=1) - layer.average
        loss = (layer.output_error(chosen) / whole + _BUDGET * off.square()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return best
