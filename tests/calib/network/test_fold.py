import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.network import graph
from calib.network.fold import Folded, trace_folded


def with_statistics(model: nn.Module) -> nn.Module:
    """Give every norm something to fold: fresh statistics would make a wrong fold nearly right."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2.0)
                nn.init.normal_(module.bias)
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 4.0)
    return model.eval()


def what_folds(model: nn.Module, *shape: int) -> tuple[Folded, ...]:
    """Fold, check that nothing changed, and return what was folded."""
    model = with_statistics(model)
    x = torch.randn(2, *shape)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    traced, pairs = trace_folded(model, (x,))
    torch.testing.assert_close(traced.module(x), model(x), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), (
        "the given model was changed"
    )
    return pairs


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), (2, 6, 6)),
        (nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), (2, 6, 6)),
        (nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), (4, 6, 6)),
        (nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4), (2, 6)),
        (nn.Linear(5, 4), nn.BatchNorm1d(4), (5,)),
        (nn.Linear(5, 4), nn.BatchNorm1d(4, affine=False), (5,)),
        (nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, affine=False), (2, 6, 6)),
    ],
    ids=["conv2d", "no bias", "depthwise", "conv1d", "linear", "linear, not affine", "conv2d, not affine"],
)
def test_folds(layer, norm, shape):
    assert what_folds(nn.Sequential(layer, norm, nn.ReLU()), *shape) == (Folded(norm="1", layer="0"),)


def test_folds_a_chain_and_frees_the_parameters_of_gradients():
    model = with_statistics(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)))
    traced, pairs = trace_folded(model, (torch.randn(2, 2, 6, 6),))
    folded = traced.module
    assert pairs == (Folded("1", "0"), Folded("3", "2"))
    assert not folded.training
    assert not any(parameter.requires_grad for parameter in folded.parameters())


class CalledUnderAutocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.layer(x))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
            return y + self.norm(x)


def test_a_norm_that_is_called_again_in_a_part_of_its_own_is_left_alone():
    assert what_folds(CalledUnderAutocast(), 2, 4, 4) == ()


def traces(monkeypatch) -> list[nn.Module]:
    """Return a list that every module is added to when it is traced."""
    found = []
    whole = graph.export_program
    monkeypatch.setattr(
        graph, "export_program", lambda model, *rest, **named: found.append(model) or whole(model, *rest, **named)
    )
    return found


@pytest.mark.parametrize("folds", [True, False])
def test_a_model_is_traced_once_whether_a_norm_folds_or_not(monkeypatch, folds):
    found = traces(monkeypatch)
    parts = (nn.Conv2d(2, 4, 3), *(() if folds else (nn.ReLU(),)), nn.BatchNorm2d(4))
    assert len(what_folds(nn.Sequential(*parts), 2, 6, 6)) == folds
    assert len(found) == 1


def test_all_norms_of_a_deep_model_are_seen_in_one_run(monkeypatch):
    """Tensors of later layers lie where those of earlier ones lay."""
    found = traces(monkeypatch)
    parts = [nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(12)]
    assert len(what_folds(nn.Sequential(*parts), 4, 3, 3)) == len(parts)
    assert len(found) == 1


class OwnConvolution(nn.Conv2d):
    """Torch's own by another name, which only the trace can tell."""


def test_what_one_run_does_not_show_is_folded_by_the_trace():
    layer = OwnConvolution(2, 4, 3)
    assert what_folds(nn.Sequential(layer, nn.BatchNorm2d(4)), 2, 6, 6) == (Folded(norm="1", layer="0"),)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.other = nn.Conv2d(2, 2, 3, padding=1)


class SharedConvolution(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv(x + 1)


class ReadTwice(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class SharedNorm(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.norm(self.other(x))


class TiedWeight(Base):
    def __init__(self) -> None:
        super().__init__()
        self.other.weight = self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.other(x)


class WeightReadElsewhere(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + F.conv2d(x, self.conv.weight, padding=1)


class BiasReadElsewhere(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv.bias[:, None, None]


class NormFirst(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


class ReluBetween(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.relu(self.conv(x)))


class HookedLayer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.conv.register_forward_hook(lambda module, given, output: output.abs())

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class ReturnedToo(Base):
    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.conv(x)
        return [self.norm(y), y.flatten(1)]


class ReadThroughAView(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y.transpose(2, 3)


class LayerAtTwoPlaces(Base):
    def __init__(self) -> None:
        super().__init__()
        self.other = self.conv

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.other(x))


class Transposed(Base):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


@pytest.mark.parametrize(
    "network",
    [
        SharedConvolution, ReadTwice, SharedNorm, TiedWeight, WeightReadElsewhere, BiasReadElsewhere, NormFirst,
        ReluBetween, HookedLayer, ReadThroughAView, Transposed,
    ],
)  # fmt: skip
def test_leaves_alone(network):
    assert what_folds(network(), 2, 5, 5) == ()


def test_leaves_alone_what_the_model_returns_too():
    assert trace_folded(with_statistics(ReturnedToo()), (torch.randn(2, 2, 5, 5),))[1] == ()


def test_a_layer_at_two_places_stays_right():
    what_folds(LayerAtTwoPlaces(), 2, 5, 5)


def test_leaves_a_norm_over_tokens_alone():
    assert what_folds(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(6)), 6, 4) == ()
