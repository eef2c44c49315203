"""Noise that is fitted to the statistics which BatchNorm layers keep of the training data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calib.errors import UserError
from calib.network.faithful import run_eager
from calib.network.modules import copy_model
from calib.synthetic.kinds import InputKind
from calib.task import Batch

BATCH = 64
"""Samples whose statistics are fitted together."""
STEPS = 40
_RATE = 0.5
"""Of Adam at the first step, in standard deviations of the noise; it falls to zero as a cosine."""
_SCALES = (1.0, 0.1, 10.0, 100.0)
"""Factors of the standard deviation of the noise that are tried: a network may take pixels in 0..1, or in 0..255."""

Read = list[tuple[_BatchNorm, Tensor]]
"""The BatchNorm layers that one run of a model has passed, each with what it read."""


@dataclass(frozen=True)
class Synthetic:
    """Batches of `batch` samples each, without targets.

    `norms` counts the calls of BatchNorm layers that they are fitted to. `mismatch` says how far the batches are from
    what these keep, and `noise_mismatch` how far the noise was that they began as; both are 0 without such a layer.
    """

    batches: tuple[Batch, ...]
    batch: int
    norms: int
    noise_mismatch: float
    mismatch: float


def synthesize(
    model: nn.Module,
    kinds: Sequence[InputKind],
    samples: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
    batch: int = 1,
) -> Synthetic:
    """Draw samples by seed, and fit the floats among them to the running statistics of BatchNorm layers.

    ZeroQ (Cai et al. CVPR 2020, arXiv 2001.00281, section 3.1) changes a batch by Adam until mean and standard
    deviation of what each BatchNorm reads are those that it keeps. Ours: 40 steps with a falling rate, differences in
    standard deviations of their channel, and a factor of the standard deviation of the noise that is chosen from four.
    Where no layer keeps statistics the noise stays as it is, and so do integers. `advance` is called
    `steps_of(samples)` times at most. A model that does not take 64 samples at once gets `batch` of them, or one. The
    model is copied. UserError when it does not run on such inputs.
    """
    model = copy_model(model).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    size = _batch_that_runs(model, kinds, (min(BATCH, samples), batch, 1))
    count = math.ceil(samples / size)
    each = math.ceil(count * STEPS / steps_of(samples))
    with _reading(model) as read:
        scale = _best_scale(model, kinds, size, seed, read)
        spreads = [scale * kind.deviation for kind in kinds if kind.dtype.is_floating_point]
        fits = [
            _fitted(
                model,
                [kind.draw(size, generator, scale) for kind in kinds],
                spreads,
                read,
                (lambda: None) if number % each else advance,
            )
            for number in range(count)
        ]
    return Synthetic(
        tuple(Batch(fit.inputs, None) for fit in fits),
        size,
        max(fit.norms for fit in fits),
        sum(fit.noise_mismatch for fit in fits) / len(fits),
        sum(fit.mismatch for fit in fits) / len(fits),
    )


def steps_of(samples: int) -> int:
    """Return how many steps the fitting of so many samples takes."""
    return math.ceil(samples / BATCH) * STEPS


def mismatch(read: Iterable[tuple[_BatchNorm, Tensor]]) -> Tensor:
    """Return how far tensors are from what the norms that read them keep; 0 is equal.

    The squared differences of mean and standard deviation, in standard deviations that the norm keeps, averaged over
    channels and norms.
    """
    parts = []
    for norm, tensor in read:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        kept = (norm.running_var + norm.eps).sqrt()
        variance, mean = torch.var_mean(tensor, [0, *range(2, tensor.dim())], correction=0)
        spread = (variance + norm.eps).sqrt() / kept
        parts.append((((mean - norm.running_mean) / kept).square() + (spread - 1).square()).mean())
    return torch.stack(parts).mean()


def _batch_that_runs(model: nn.Module, kinds: Sequence[InputKind], sizes: Sequence[int]) -> int:
    """Return the first of the sizes of a batch that a model runs on; UserError of the first where it runs on none."""
    errors = []
    for size in sizes:
        generator = torch.Generator().manual_seed(0)
        try:
            run_eager(model, [kind.draw(size, generator) for kind in kinds], f"synthetic inputs ({size} samples)")
        except UserError as error:
            errors.append(error)
        else:
            return size
    raise errors[0]


@contextmanager
def _reading(model: nn.Module) -> Iterator[Read]:
    """Hand out a list that gets what each BatchNorm with statistics reads while the model runs."""
    read: Read = []

    def keep(norm: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        if given and isinstance(given[0], Tensor):
            read.append((norm, given[0]))

    norms = [each for each in model.modules() if isinstance(each, _BatchNorm) and each.running_var is not None]
    handles = [norm.register_forward_pre_hook(keep) for norm in norms]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


def _distance(model: nn.Module, inputs: Iterable[Tensor], read: Read) -> Tensor | None:
    """Run the model and return the mismatch; None where no norm has read anything."""
    read.clear()
    model(*(tensor.clone() for tensor in inputs))  # forward() may write into what it is given
    found = mismatch(read) if read else None
    return found if found is None or bool(torch.isfinite(found)) else None


def _best_scale(model: nn.Module, kinds: Sequence[InputKind], size: int, seed: int, read: Read) -> float:
    """Return the factor of the noise's standard deviation that comes nearest to what the norms keep."""
    found = {}
    with torch.no_grad():
        for scale in _SCALES:
            generator = torch.Generator().manual_seed(seed)
            distance = _distance(model, [kind.draw(size, generator, scale) for kind in kinds], read)
            if distance is not None:
                found[scale] = float(distance)
    return min(found, key=found.__getitem__, default=1.0)


@dataclass(frozen=True)
class _Fit:
    inputs: tuple[Tensor, ...]
    norms: int = 0
    noise_mismatch: float = 0.0
    mismatch: float = 0.0


def _fitted(
    model: nn.Module, inputs: Sequence[Tensor], spreads: Sequence[float], read: Read, advance: Callable[[], None]
) -> _Fit:
    """Return the batch that noise becomes; the noise itself where the model gives no gradient to its inputs, and where
    that comes nearer. `spreads` are the standard deviations of the floats.
    """
    plain = tuple(tensor.clone() for tensor in inputs)
    leaves = [tensor.requires_grad_() for tensor in inputs if tensor.is_floating_point()]
    distances: list[float] = []
    norms = 0
    for step in range(STEPS):
        with torch.enable_grad():
            distance = _distance(model, inputs, read)
        if distance is None or not distance.requires_grad:
            break
        if not distances:
            optimizer, norms = torch.optim.Adam([{"params": [leaf]} for leaf in leaves]), len(read)
        distances.append(float(distance.detach()))
        for group, spread in zip(optimizer.param_groups, spreads, strict=True):
            group["lr"] = spread * _RATE * (1 + math.cos(math.pi * step / STEPS)) / 2
        gradients = torch.autograd.grad(distance, leaves, allow_unused=True)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        optimizer.step()
        advance()
    else:
        done = tuple(tensor.detach() for tensor in inputs)
        with torch.no_grad():
            last = _distance(model, done, read)
        if last is not None and float(last) <= distances[0]:
            return _Fit(done, norms, distances[0], float(last))
    first = distances[0] if distances else 0.0
    return _Fit(plain, norms, first, first)
