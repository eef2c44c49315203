"""HAWQ against Hessians that are written out in full."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calib.calibrate import Calibration, CalibrationSettings
from calib.errors import UserError
from calib.formats.format import FP16, Format
from calib.network.graph import TracedModel
from calib.network.units import find_units
from calib.task import Batch
from smpq.methods.hawq import mean_traces
from smpq.methods.weight_error import squared_error
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer


class Net(nn.Module):
    """A convolution and two linear layers, smooth enough to have a Hessian in all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.hidden = nn.Linear(8, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(F.gelu(self.conv(x)).flatten(1))))


class Task:
    name = "net"

    def loss(self, output, target):
        return F.cross_entropy(output, target, reduction="none")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    model = Net().eval()
    batches = [Batch((torch.randn(n, 1, 4, 4),), torch.randint(0, 3, (n,))) for n in (8, 5, 8)]
    traced = TracedModel(model, (batches[0].inputs[0][:2],))
    return model, traced, find_units(traced)[0], batches


def exact_means(model, batches):
    x, y = torch.cat([b.inputs[0] for b in batches]), torch.cat([b.target for b in batches])
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    found = {}
    for name in ("conv", "hidden", "head"):
        weight = state[f"{name}.weight"]

        def loss(w, name=name):
            return F.cross_entropy(torch.func.functional_call(model, {**state, f"{name}.weight": w}, (x,)), y)

        hessian = torch.autograd.functional.hessian(loss, weight).reshape(weight.numel(), weight.numel())
        found[name] = float(torch.trace(hessian)) / weight.numel()
    return found


def test_the_mean_is_the_trace_of_the_whole_hessian(net):
    model, traced, units, batches = net
    traces, exact = mean_traces(Task(), traced, units, batches, 60, seed=3), exact_means(model, batches)
    for path, found in traces.items():
        assert len(found) == 3 * 60
        assert abs(found.mean() - exact[path]) < 3 * found.std(ddof=1) / np.sqrt(len(found)), path


@pytest.mark.parametrize("path", ["conv", "hidden", "head"])
def test_all_coordinates_in_place_of_signs_give_the_trace_exactly(net, monkeypatch, path):
    model, traced, units, batches = net
    unit = next(unit for unit in units if unit.path == path)
    count = unit.parameters
    basis = torch.eye(count).reshape(count, *traced.state[unit.weight].shape)
    rows = iter([row for _ in batches for row in basis])
    monkeypatch.setattr("smpq.methods.hawq._signs", lambda *_: next(rows))
    found = mean_traces(Task(), traced, [unit], batches, count)[path]
    assert found.sum() / len(batches) == pytest.approx(exact_means(model, batches)[path], rel=1e-4)


def test_gradients_that_the_caller_has_switched_off_are_on_for_the_traces(net):
    _, traced, units, batches = net
    with torch.no_grad():
        one = mean_traces(Task(), traced, units, batches, 4)
    assert all(
        np.array_equal(one[path], found) for path, found in mean_traces(Task(), traced, units, batches, 4).items()
    )


def test_the_same_seed_gives_the_same_probes(net):
    _, traced, units, batches = net
    one, again, other = (mean_traces(Task(), traced, units, batches, 4, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(one[path], again[path]) and not np.array_equal(one[path], other[path]) for path in one)


def test_squared_errors(net):
    _, traced, units, batches = net
    fake = FakeQuantizer(
        traced,
        units,
        Calibration(traced, units, batches, CalibrationSettings("minmax", "nearest", "affine")),
        QdqRules("affine"),
    )
    unit = units[0]
    weight = traced.state[unit.weight]
    by_bits = [squared_error(fake, unit, Format.from_text(text)) for text in ("w2a8", "w4a8", "w8a8", "fp32")]
    assert by_bits == sorted(by_bits, reverse=True)
    assert by_bits[-1] == 0
    integers = fake.calibration.weight(unit, Format.from_text("w4a8"))
    assert by_bits[1] == pytest.approx(float((integers.dequantize() - weight).square().sum()), rel=1e-5)
    assert squared_error(fake, unit, FP16) == pytest.approx(
        float((weight.half().float() - weight).square().sum()), rel=1e-5
    )


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda output, _: output.detach().sum(1), "cannot be differentiated: compute it with torch"),
        (
            lambda output, target: F.multi_margin_loss(output, target, reduction="none"),
            r"cannot be differentiated twice \(derivative for aten::multi_margin_loss_backward",
        ),
    ],
)
def test_losses_without_derivatives(net, loss, message):
    _, traced, units, batches = net
    task = Task()
    task.loss = loss
    with pytest.raises(UserError, match=message):
        mean_traces(task, traced, units, batches[:1], 1)


def test_a_linear_loss_has_no_curvature(net):
    _, traced, units, batches = net
    task, head = Task(), [unit for unit in units if unit.path == "head"]
    task.loss = lambda output, _: output.sum(1)
    assert mean_traces(task, traced, head, batches, 2)["head"].tolist() == [0.0] * 6


class Attending(nn.Module):
    """Attention whose result is viewed as its usual kernel lays it out, which has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 18)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        query, key, value = (part.unflatten(2, (2, 3)).transpose(1, 2) for part in self.qkv(x).chunk(3, 2))
        found = F.scaled_dot_product_attention(query, key, value)
        return self.head(found.transpose(1, 2).reshape(x.shape).mean(1))


def test_attention():
    torch.manual_seed(0)
    model = Attending().eval()
    batch = Batch((torch.randn(6, 5, 6),), torch.randint(0, 3, (6,)))
    traced = TracedModel(model, (batch.inputs[0][:2],))
    (unit, _) = find_units(traced)[0]
    assert unit.path == "qkv"
    found = mean_traces(Task(), traced, [unit], [batch], 200)["qkv"]
    (query, key, value) = (model.qkv.weight.detach()[start : start + 6] for start in (0, 6, 12))

    def loss(*parts):
        projected = F.linear(batch.inputs[0], torch.cat(parts), model.qkv.bias)
        q, k, v = (part.unflatten(2, (2, 3)).transpose(1, 2) for part in projected.chunk(3, 2))
        attended = ((q @ k.transpose(2, 3)) / 3**0.5).softmax(3) @ v
        return F.cross_entropy(model.head(attended.transpose(1, 2).reshape(6, 5, 6).mean(1)), batch.target)

    hessian = torch.autograd.functional.hessian(loss, (query, key, value))
    exact = sum(float(torch.trace(hessian[i][i].reshape(36, 36))) for i in range(3)) / 108
    assert abs(found.mean() - exact) < 3 * found.std(ddof=1) / len(found) ** 0.5
