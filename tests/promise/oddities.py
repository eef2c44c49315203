"""Parts that break the promise unless they are refused or taken literally: rules on the batch, state, randomness,
values as control flow.
"""

from __future__ import annotations

import random
import time
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.promise.drawing import Do, Draw, Shape, registry

ODDITIES, odd = registry()

SCALE = 0.75
"""A global that `forward` reads."""


@odd()
def batch_rule(draw: Draw, shape: Shape) -> nn.Module:
    """Another result for some sizes of the batch."""
    rule = draw(
        lambda n: n == 1, lambda n: n > 4, lambda n: n % 2 == 0, lambda n: n < 3, lambda n: n in (3, 5),
        lambda n: n != 2, lambda n: n >= 2, lambda n: n * 3 > 7,
    )  # fmt: skip
    change = draw(
        lambda x: x.flip(-1), lambda x: -x, lambda x: x * 0.5 + 1, F.relu, lambda x: x - x.mean(0, keepdim=True)
    )
    if draw.chance(0.3):
        return Do(lambda self, x: x * float(x.shape[0]))
    if draw.chance(0.2):
        return Do(lambda self, x: change(x) if rule(len(x)) else x)
    return Do(lambda self, x: change(x) if rule(x.shape[0]) else x)


class _Fixed(nn.Module):
    """Works for some sizes of the batch only."""

    def __init__(self, how: str, shape: Shape) -> None:
        super().__init__()
        self.how, self.shape = how, shape
        self.register_buffer("rows", torch.randn(4, *shape))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "one":
            return x.reshape(1, *self.shape) * 2
        if self.how == "assert":
            assert x.shape[0] == 1, "one sample only"
            return x
        if self.how == "squeeze":
            return (x.squeeze(0) * 2).reshape(x.shape)
        if self.how == "rows":
            return x + self.rows[: x.shape[0]]
        if self.how == "pairs":
            return x.reshape(-1, 2, *self.shape).flip(1).reshape(x.shape)
        if x.shape[0] > 3:
            raise RuntimeError("too many samples")
        return x


@odd()
def batch_limit(draw: Draw, shape: Shape) -> nn.Module:
    return _Fixed(draw("one", "assert", "squeeze", "rows", "pairs", "most"), shape)


class _State(nn.Module):
    """Keeps something from call to call."""

    def __init__(self, how: str, shape: Shape) -> None:
        super().__init__()
        self.how = how
        self.calls = 0
        self.last: Tensor | None = None
        self.items: list[int] = []
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(shape[-1]))
        self.gain = nn.Parameter(torch.ones(shape[-1]))

    def forward(self, x: Tensor) -> Tensor:  # noqa: C901, PLR0912 - one branch for each kind of state
        if self.how == "count":
            self.calls += 1
            return x * (1 + 0.5 * self.calls)
        if self.how == "alternate":
            self.calls += 1
            return x if self.calls % 2 else -x
        if self.how == "first":
            if self.calls == 0:
                self.calls = 1
                return x * 2
            return x
        if self.how == "last":
            result = x if self.last is None or self.last.shape != x.shape else x - self.last
            self.last = x
            return result
        if self.how == "lazy":
            if self.last is None:
                self.last = x.abs().amax()
            return x / (self.last + 1)
        if self.how == "grow":
            self.items.append(1)
            return x + len(self.items)
        if self.how == "buffer":
            self.seen += 1
            return x * self.seen
        if self.how == "average":
            self.mean = 0.9 * self.mean + 0.1 * x.reshape(-1, x.shape[-1]).mean(0)
            return x - self.mean
        if self.how == "copy":
            self.mean.copy_(x.reshape(-1, x.shape[-1]).mean(0))
            return x - self.mean
        if self.how == "kept":  # written, never read: the result does not depend on it
            self.last = x.detach()
            self.calls += 1
            return x * 2
        if self.how == "parameter":
            with torch.no_grad():
                self.gain.mul_(1.1)
            return x * self.gain
        self.seen.fill_(float(x.shape[0]))
        return x + self.seen


@odd()
def state(draw: Draw, shape: Shape) -> nn.Module:
    hows = ("count", "alternate", "first", "last", "lazy", "grow", "buffer", "average", "copy", "kept", "parameter",
            "fill")  # fmt: skip
    return _State(draw(*hows), shape)


class _Stuck(nn.Module):
    """A layer that stays in training mode whatever is asked of the model."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside.train()

    def train(self, mode: bool = True) -> nn.Module:
        self.training = mode
        self.inside.train()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x)


@odd()
def stuck_in_training(draw: Draw, shape: Shape) -> nn.Module:
    norm = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
    drop = {3: nn.Dropout2d, 2: nn.AlphaDropout, 1: nn.Dropout}[len(shape)]
    stats = norm(shape[0], track_running_stats=False)
    mean, variance = torch.zeros(shape[0]), torch.ones(shape[0])
    return draw(
        _Stuck(nn.Dropout(0.5)), _Stuck(drop(0.3)), _Stuck(norm(shape[0])), stats,
        Do(lambda self, x: F.dropout(x, 0.5, training=True)), _Stuck(norm(shape[0])),
        Do(lambda self, x: F.batch_norm(x, mean, variance, training=True)), Do(lambda self, x: F.dropout(x, 0.2)),
        Do(lambda self, x: F.batch_norm(x, None, None, training=True)), _Stuck(nn.RReLU()),
    )  # fmt: skip


@odd()
def left_in_training(draw: Draw, shape: Shape) -> nn.Module:
    """Parts in training mode inside a model in evaluation mode: `eval()` of the whole puts them right."""
    norm = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
    return draw(nn.Dropout(0.5), norm(shape[0]), nn.RReLU())


@odd()
def random_numbers(draw: Draw, shape: Shape) -> nn.Module:
    generator = np.random.default_rng()
    how = draw(
        lambda x: x + torch.randn_like(x), lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
        lambda x: x + torch.empty_like(x).normal_(), lambda x: x + torch.empty_like(x).exponential_(),
        lambda x: F.gumbel_softmax(x, dim=-1), lambda x: x + torch.rand(x.shape[-1]),
        lambda x: x[..., torch.randperm(x.shape[-1])], lambda x: x * random.random(),
        lambda x: x + float(generator.normal()), lambda x: x * torch.empty_like(x).uniform_(),
        lambda x: torch.normal(x, 0.1), lambda x: x + torch.randint(0, 3, (x.shape[-1],)),
        lambda x: x + torch.empty_like(x).cauchy_().clamp(-1, 1),
        lambda x: x + torch.distributions.Normal(0.0, 1.0).sample(x.shape),
        lambda x: x * torch.poisson(torch.ones_like(x)), lambda x: F.rrelu(x, training=True),
        lambda x: x + torch.empty_like(x).geometric_(0.5), lambda x: x * torch.empty_like(x).bernoulli_(0.5),
        lambda x: (
            F.feature_alpha_dropout(x, 0.5, training=True) if x.dim() > 2 else F.alpha_dropout(x, 0.5, training=True)
        ),
        lambda x: x + torch.empty_like(x).random_(0, 4), lambda x: x + torch.empty_like(x).log_normal_(),
        lambda x: x + 0 * torch.randn_like(x),
    )  # fmt: skip
    return Do(lambda self, x: how(x))


@odd()
def values_as_control(draw: Draw, shape: Shape) -> nn.Module:
    how = draw(
        lambda x: x if x.sum() > 0 else -x, lambda x: x * int(x.abs().max() > 1),
        lambda x: x[..., : max(int((x > 0).sum()) % x.shape[-1], 1)].sum(-1, keepdim=True) + x,
        lambda x: x * x.mean().item(), lambda x: x[x.abs() >= 0].reshape(x.shape), lambda x: x + float(x.max()),
        lambda x: x.sub(x.min().tolist()), lambda x: torch.from_numpy(x.detach().numpy() * 2),
        lambda x: x + x.nonzero().shape[0], lambda x: x * (2.0 if bool((x > 3).any()) else 1.0),
        lambda x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)), lambda x: torch.tensor(x.tolist()),
        lambda x: x * len(torch.unique(x.round())),
    )  # fmt: skip
    return Do(lambda self, x: how(x))


@odd()
def not_finite(draw: Draw, shape: Shape) -> nn.Module:
    """NaN or infinity, always or for some samples."""
    how = draw(
        torch.log, torch.sqrt, lambda x: x / (x > -1.5), lambda x: 1 / x.clamp(min=0),
        lambda x: torch.where(x > 2.5, torch.inf, x), torch.asin, lambda x: x.masked_fill(x > 2.8, float("nan")),
        lambda x: torch.exp(x * 40), lambda x: x / x.norm(dim=-1, keepdim=True).sub(1).relu(),
        lambda x: (x * 1e30) * 1e-30, lambda x: F.softmax(x.masked_fill(x > 0, -torch.inf), -1),
        lambda x: torch.nan_to_num(torch.log(x)), lambda x: x + torch.tensor(float("nan")),
        lambda x: torch.atanh(x * 0.4), lambda x: (x * 1e5).half().float(),
    )  # fmt: skip
    return Do(lambda self, x: how(x))


@odd()
def outside_world(draw: Draw, shape: Shape) -> nn.Module:
    """Reads what is not part of the module."""
    return draw(
        Do(lambda self, x: x * SCALE), Do(lambda self, x: x + time.time() % 1),
        Do(lambda self, x: x + time.perf_counter_ns() % 1000),
        Do(lambda self, x: x * (2 if torch.is_grad_enabled() else 1)),
        Do(lambda self, x: x * (1 if self.training else 3)), Do(lambda self, x: x + (id(x) // 16 % 7)),
        Do(lambda self, x: x * (2 if torch.compiler.is_compiling() else 1)),
        Do(lambda self, x: x * (2 if torch.compiler.is_exporting() else 1)),
        Do(lambda self, x: x * (1 if x.is_contiguous() else 2)), Do(lambda self, x: x * (2 if x.requires_grad else 1)),
        Do(lambda self, x: x * (3 if x.data_ptr() % 128 == 0 else 1)),
        Do(lambda self, x: x * (2 if torch.is_inference_mode_enabled() else 1)),
        Do(lambda self, x: x * (2 if type(x) is torch.Tensor else 1)),
        Do(lambda self, x: x * (2 if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() else 1)),
    )  # fmt: skip


@odd()
def changes_its_input(draw: Draw, shape: Shape) -> nn.Module:
    how = draw(
        lambda x: x.add_(1),
        lambda x: x.mul_(0.5) + 1,
        F.relu_,
        lambda x: x[:, :1].zero_() + x,
        lambda x: x.clamp_(-0.5),
    )

    def run(self: nn.Module, x: Tensor) -> Tensor:
        before = x * 1
        return how(x) + before

    return Do(run)


def _scripted(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # people have such modules all the same
        return torch.jit.script(module)


@odd()
def custom_code(draw: Draw, shape: Shape) -> nn.Module:
    """Autograd functions, hooks, scripts, closures, generators."""
    if draw.chance(0.3):
        module = nn.Identity()
        module.register_forward_hook(lambda module, inputs, output: output * 2)
        return module
    if draw.chance(0.3):
        module = nn.ReLU()
        module.register_forward_pre_hook(lambda module, inputs: (inputs[0] - 0.2,))
        return module
    return draw(
        Do(lambda self, x: _Doubled.apply(x)), _scripted(nn.Tanh()),
        Do(lambda self, x: sum(part for part in x.split(1, -1))),
        Do(lambda self, x: torch.vmap(lambda one: one * 2 + one.sum())(x)),
        Do(lambda self, x: torch.utils.checkpoint.checkpoint(torch.tanh, x, use_reentrant=False)),
        Do(lambda self, x: torch.func.functional_call(nn.ReLU(), {}, (x,))),
        nn.Sequential(nn.Identity(), Do(lambda self, x: x.data * 2)),
        Do(lambda self, x: F.one_hot((x > 0).long(), 2).float().sum(-1) * x),
        Do(lambda self, x: torch.fft.rfft(x).abs().sum(-1, keepdim=True) + x), Do(lambda self, x: x.sort(-1).values),
        Do(lambda self, x: x.topk(1, -1).values + x), Do(lambda self, x: x.round() + x.floor() * 0.1 + x.sign()),
        Do(lambda self, x: torch.view_as_complex(torch.stack([x, x], -1)).abs()),
        Do(lambda self, x: x.median(-1, keepdim=True).values + x),
        Do(lambda self, x: torch.cdist(x.flatten(1), x.flatten(1)).sum() + x),
        Do(lambda self, x: (x > 0).int().sum(-1, keepdim=True) // 2 + x),
    )  # fmt: skip


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * 2
