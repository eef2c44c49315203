"""Weights that are computed from parameters alone are constants of the engine, and can be quantised."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from calib.network.fold import trace_folded
from calib.network.units import find_units
from tests.calib.network.test_fold import with_statistics


class Standardised(nn.Conv2d):
    """Weight standardisation (Qiao et al., arXiv 1903.10520), with a gain."""

    def __init__(self, *args: int, **named: int) -> None:
        super().__init__(*args, **named)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.flatten(1)
        weight = (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + 1e-5)
        weight = weight.reshape_as(self.weight) * self.gain
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Masked(nn.Linear):
    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        self.register_buffer("mask", (torch.rand(self.weight.shape) > 0.5).float())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias * 2)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def old_norms() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(
            nn.utils.weight_norm(nn.Conv1d(3, 4, 3)), nn.utils.spectral_norm(nn.Conv1d(4, 4, 3)), nn.BatchNorm1d(4)
        )


def pruned() -> nn.Module:
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(28, 4))
    for layer in (model[0], model[3]):
        prune.random_unstructured(layer, "weight", 0.5)
        prune.ln_structured(layer, "weight", 1, 2, 0)
    return prune.random_unstructured(model[3], "bias", 0.5) and model


def registered() -> nn.Module:
    layer = nn.Conv1d(3, 4, 3)
    parametrize.register_parametrization(layer, "weight", Doubled())
    parametrize.register_parametrization(layer, "bias", Doubled())
    return nn.Sequential(layer, nn.BatchNorm1d(4))


NETWORKS = {
    "weight norm": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv1d(3, 4, 3)), nn.BatchNorm1d(4)), (3, 9)),
    "spectral norm": (lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 4))), (6,)),
    "older hooks": (old_norms, (3, 9)),
    "masks of pruning": (pruned, (3, 9)),
    "parametrisations of one's own": (registered, (3, 9)),
    "weight standardisation": (
        lambda: nn.Sequential(
            Standardised(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), Standardised(4, 4, 3, groups=2)
        ),
        (2, 9, 9),
    ),
    "a mask": (lambda: nn.Sequential(Masked(6, 4)), (6,)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_computed_weight_is_a_unit_and_the_model_stays_as_it_is(name):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = with_statistics(make())
    x, before = torch.randn(2, *shape), copy.deepcopy(model.state_dict())
    expected = model(x)
    traced, _ = trace_folded(model, (x,))
    units, skipped = find_units(traced)
    assert len(units) == sum(isinstance(part, (nn.Linear, nn.Conv1d, nn.Conv2d)) for part in model.modules())
    assert not skipped
    torch.testing.assert_close(traced.run((x,)), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(x), expected), "the given model runs as before"
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Padded(Standardised):
    """Does something else with its input too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1)))


class OfTheInput(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * x.mean(), self.bias)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Standardised(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


@pytest.mark.parametrize("make", [lambda: Padded(2, 4, 3), lambda: OfTheInput(2, 4, 3), Twice])
def test_what_does_more_than_compute_a_weight_is_left_alone_and_named(make):
    model, x = nn.Sequential(make(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)), torch.randn(2, 2, 7, 7)
    model(x)
    traced, _ = trace_folded(model.eval(), (x,))
    units, skipped = find_units(traced)
    assert [unit.path for unit in units] == ["3"]
    assert skipped
    torch.testing.assert_close(traced.run((x,)), model(x), rtol=1e-4, atol=1e-5)
