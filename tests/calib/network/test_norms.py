"""A BatchNorm of any class that stands behind a layer becomes a part of it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.network.fold import Folded, trace_folded
from calib.network.norms import batch_norm_of
from calib.network.units import find_units
from tests.calib.network.test_fold import with_statistics


class NormAndActivation(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class ForeignNorm(nn.Module):
    """No BatchNorm of torch's: names and the constant are its own."""

    def __init__(self, channels: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps
        self.gain, self.offset = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.randn(channels))
        self.register_buffer("mean", torch.randn(channels))
        self.register_buffer("variance", torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.variance, self.gain, self.offset, eps=self.eps)


class LayerWithNorm(nn.Conv2d):
    """A convolution that holds its norm, as detectors write it."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__(inputs, outputs, 3, bias=bias)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(F.conv2d(x, self.weight, self.bias)))


class OwnWeight(nn.Module):
    """A layer that is no module of torch's."""

    def __init__(self, *, bias: bool = False, affine: bool = True) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 2, 3, 3))
        self.sum = nn.Parameter(torch.randn(4)) if bias else None
        self.norm = nn.BatchNorm2d(4, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.conv2d(x, self.matrix, self.sum))


def folded_into(model: nn.Module, *shape: int) -> tuple[Folded, ...]:
    """Fold, check that the trace computes what the module does and has no norm, and return what was folded."""
    model, x = with_statistics(model), torch.randn(2, *shape)
    before = copy.deepcopy(model.state_dict())
    traced, folded = trace_folded(model, (x,))
    torch.testing.assert_close(traced.run((x,)), model(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(traced.module(x), model(x), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(batch_norm_of(node) for node in traced.steps)
    units, skipped = find_units(traced)
    assert units
    assert not skipped
    return folded


@pytest.mark.parametrize(
    "norm",
    [NormAndActivation, nn.SyncBatchNorm, ForeignNorm, lambda channels: NormAndActivation(channels, affine=False)],
    ids=["with an activation", "synchronised", "foreign", "not affine"],
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_norm_of_another_class(norm, bias):
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=bias), norm(4), nn.Conv2d(4, 2, 1), norm(2))
    assert folded_into(model, 2, 6, 6) == (Folded("1", "0"), Folded("3", "2"))


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_that_holds_its_norm(bias):
    model = nn.Sequential(LayerWithNorm(2, 4, bias=bias), LayerWithNorm(4, 2, bias=bias))
    assert folded_into(model, 2, 8, 8) == (Folded("0.norm", "0"), Folded("1.norm", "1"))


@pytest.mark.parametrize(("bias", "affine"), [(True, True), (True, False), (False, True)])
def test_a_layer_that_is_no_module(bias, affine):
    assert len(folded_into(OwnWeight(bias=bias, affine=affine), 2, 6, 6)) == 1


def test_the_hooks_of_a_norm_stay():
    norm = nn.BatchNorm2d(4)
    norm.register_forward_hook(lambda _module, _given, output: output.abs())
    assert folded_into(nn.Sequential(nn.Conv2d(2, 4, 3), norm), 2, 6, 6) == (Folded("1", "0"),)


def test_a_linear_layer_and_a_norm_of_another_class():
    class Norm(nn.BatchNorm1d):
        pass

    assert folded_into(nn.Sequential(nn.Linear(5, 4), Norm(4)), 5) == (Folded("1", "0"),)


def test_a_fresh_norm_without_a_layer_stays():
    """Its variance is one, and its constant makes it a little less than the identity."""
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)).eval()
    traced, folded = trace_folded(model, (torch.randn(2, 2, 4, 4),))
    assert folded == ()
    assert sum(batch_norm_of(node) is not None for node in traced.steps) == 1


class Returned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(2, 4, 3), ForeignNorm(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(self.layer(x))
        return y, y.relu()


def test_a_norm_whose_result_the_model_returns():
    model, x = with_statistics(Returned()), torch.randn(2, 2, 6, 6)
    traced, folded = trace_folded(model, (x,))
    assert len(folded) == 1
    torch.testing.assert_close(traced.run((x,)), model(x), rtol=1e-4, atol=1e-5)
    outputs = [output.arg.name for output in traced.program.graph_signature.output_specs]
    assert outputs == [node.name for node in traced.output.all_input_nodes]
