import dataclasses
import pickle
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.formats.format import Format
from calib.formats.quantizers import ActivationQuantizer
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from tests.smpq.problems import Traced, residual


def fake(network: Traced, rules: QdqRules | None = None) -> FakeQuantizer:
    return FakeQuantizer(network.traced, network.units, network.calibration, rules or QdqRules("affine"))


def single(*, bias: float = 1.0) -> Traced:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([0.1234567, -2.7182818, 0.0]) * bias)
    return Traced(model, torch.randn(8, 2, 6, 6))


def integer_convolution(
    x: Tensor, quantizer: ActivationQuantizer, integers: Tensor, step: Tensor, bias: Tensor
) -> Tensor:
    """What the kernel does: integer products, an integer bias in units of both steps, one multiplication at the end."""
    low, high = quantizer.limits
    q = torch.clamp(torch.round(x.double() / quantizer.scale) + quantizer.zero_point, low, high) - quantizer.zero_point
    unit = step.double() * quantizer.scale
    sums = F.conv2d(q, integers.double(), torch.round(bias.double() / unit))
    assert torch.equal(sums, sums.round())
    return (sums * unit[:, None, None]).float()


def test_a_float_policy_changes_nothing():
    network = residual()
    for rules in (QdqRules("affine"), QdqRules("affine", outputs=True, integer_bias=True)):
        output = fake(network, rules).run(network.formats("fp32"), (network.x,))
        assert torch.equal(output, network.traced.run((network.x,)))


def test_one_layer_by_hand():
    network = single()
    (unit,) = network.units
    quantizer = fake(network)
    plan = quantizer.plan(network.formats("w4a8"))
    weight = network.calibration.weight(unit, Format.from_text("w4a8"))
    bias = network.traced.state[unit.bias]
    expected = F.conv2d(plan.input_quantizer(unit, 0)(network.x), weight.dequantize(), bias)
    torch.testing.assert_close(quantizer.run(network.formats("w4a8"), (network.x,)), expected)
    weight_only = F.conv2d(network.x, weight.dequantize(), bias)
    torch.testing.assert_close(quantizer.run(network.formats("w4a16"), (network.x,)), weight_only)


def test_half_precision_rounds_the_weights():
    network = single()
    (unit,) = network.units
    state = network.traced.state
    expected = F.conv2d(network.x, state[unit.weight].half().float(), state[unit.bias])
    output = fake(network).run(network.formats("fp16"), (network.x,))
    assert torch.equal(output, expected)
    assert not torch.equal(output, network.traced.run((network.x,)))


def test_more_bits_come_closer():
    network = residual()
    reference = network.traced.run((network.x,))
    errors = [
        float((fake(network).run(network.formats(f), (network.x,)) - reference).norm())
        for f in ("w2a8", "w4a8", "w8a8")
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0


def test_an_integer_bias_gives_what_the_integer_kernel_gives():
    network = single()
    (unit,) = network.units
    formats = network.formats("w8a8")
    quantizer = fake(network, QdqRules("affine", integer_bias=True))
    plan = quantizer.plan(formats)
    weight = plan.weights[unit.path]
    bias = network.traced.state[unit.bias]
    expected = integer_convolution(network.x, plan.input_quantizer(unit, 0), weight.values, weight.scale, bias)
    torch.testing.assert_close(quantizer.run(formats, (network.x,)), expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(fake(network).run(formats, (network.x,)), expected, rtol=1e-6, atol=1e-6)


def test_layers_that_read_integers_get_an_integer_bias():
    network = residual()
    quantizer = fake(network, QdqRules("affine", outputs=True, integer_bias=True))
    formats = network.formats("w8a8", stem="w4a16", c="fp32")
    biases = {unit.bias: unit.path for unit in network.units}
    edges = quantizer.edits(quantizer.plan(formats)).edges
    assert {biases[tensor] for tensor, _ in edges if tensor in biases} == {"a", "b", "skip", "d", "head"}
    assert not any(tensor in biases for tensor, _ in fake(network).edits(quantizer.plan(formats)).edges)


def test_each_call_of_a_layer_rounds_the_bias_to_its_own_step():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.layer(torch.tanh(self.layer(x)))

    torch.manual_seed(0)
    network = Traced(Twice(), 5 * torch.randn(8, 2, 4, 4))
    (unit,) = network.units
    quantizer = fake(network, QdqRules("affine", integer_bias=True))
    formats = network.formats("w8a8")
    plan = quantizer.plan(formats)
    first, second = (plan.input_quantizer(unit, index) for index in (0, 1))
    assert first.scale != second.scale
    weight, bias = plan.weights[unit.path], network.traced.state[unit.bias]
    inner = integer_convolution(network.x, first, weight.values, weight.scale, bias)
    expected = integer_convolution(torch.tanh(inner), second, weight.values, weight.scale, bias)
    torch.testing.assert_close(quantizer.run(formats, (network.x,)), expected, rtol=1e-5, atol=1e-5)


def test_a_bias_that_does_not_fit_32_bits_stays_float():
    network = single()
    (unit,) = network.units
    plan = fake(network).plan(network.formats("w8a8"))
    weight = dataclasses.replace(plan.weights["0"], scale=torch.full((3,), 1e-12))
    plan = dataclasses.replace(plan, weights={"0": weight})
    edit = fake(network, QdqRules("affine", integer_bias=True)).edits(plan).edges[unit.bias, unit.calls[0]]
    bias = network.traced.state[unit.bias]
    assert torch.equal(edit(bias), bias)


def test_the_weights_are_restored_once_for_all_policies():
    network = residual()
    quantizer = fake(network)
    first, second = (
        quantizer.edits(quantizer.plan(network.formats(text))).parameters[network.by_path["a"].weight]
        for text in ("w4a8", "w4a16")
    )
    assert first is second


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
def test_eight_bits_agree_with_float_within_their_steps(scheme):
    network = residual(scheme)
    reference = network.traced.run((network.x,))
    rules = QdqRules(scheme, outputs=scheme == "affine", skips=scheme == "symmetric", integer_bias=scheme == "affine")
    output = fake(network, rules).run(network.formats("w8a8"), (network.x,))
    assert float((output - reference).norm() / reference.norm()) < 0.05


class Ends(nn.Module):
    """Two convolutions whose results are put together and then only averaged."""

    def __init__(self, clip):
        super().__init__()
        self.a, self.b, self.head, self.clip = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3), nn.Linear(6, 4), clip

    def forward(self, x):
        return self.head(self.clip(torch.cat([self.a(x), self.b(x)], 1)).mean((2, 3)))


@pytest.mark.parametrize("clip", [nn.Identity(), nn.ReLU(), nn.Sequential(nn.ReLU(), nn.Hardtanh(-1, 2))])
def test_a_concatenation_that_is_only_averaged_is_read_as_integers(clip):
    torch.manual_seed(0)
    network = Traced(Ends(clip), torch.randn(8, 2, 6, 6))
    quantizer = fake(network, QdqRules("affine", outputs=True))
    (mean,) = (node for node in network.traced.graph.nodes if "mean" in node.name)
    plan = quantizer.plan(network.formats("w8a8"))
    assert mean.all_input_nodes[0].name in {entry.tensor for entry in plan.tensors if entry.consumers is None}
    reference = network.traced.run((network.x,))
    assert float((quantizer.run(network.formats("w8a8"), (network.x,)) - reference).norm() / reference.norm()) < 0.05


class Masked(nn.Module):
    """Adds a mask of infinity to scores, and takes a row of the result of a layer that integers leave."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("mask", torch.full((5, 5), -torch.inf).triu(1))

    def forward(self, x):
        x = self.c(torch.relu(self.a(x) + self.b(x)))
        x = ((x.transpose(1, 2) @ x) + self.mask).softmax(-1) @ x.transpose(1, 2)
        return self.second(self.first(x.mean(1)))


def test_a_pickled_copy_knows_all_that_its_policies_quantise():
    torch.manual_seed(0)
    network = Traced(Masked(), torch.randn(8, 4, 5))
    quantizer = fake(network, QdqRules("affine", outputs=True, integer_bias=True))
    texts = ("fp32", "w4a16", "w8a8", "w4a4")
    quantizer.prepare({unit.path: [Format.from_text(text) for text in texts] for unit in network.units})
    copy = pickle.loads(pickle.dumps(quantizer))  # noqa: TID251 - our own
    drawn = random.Random(0)
    for _ in range(40):
        formats = {unit.path: Format.from_text(drawn.choice(texts)) for unit in network.units}
        assert copy.plan(formats).tensors == quantizer.plan(formats).tensors


def test_a_bias_of_one_number_is_that_of_all_rows():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.tensor([3.0]))

        def forward(self, x):
            return F.linear(x, self.weight, self.bias)

    torch.manual_seed(0)
    network = Traced(Shared(), torch.randn(8, 4))
    (unit,) = network.units
    assert network.calibration._scale_floor(unit, Format.from_text("w8a8")).shape == (6,)
    output = fake(network, QdqRules("affine", outputs=True, integer_bias=True)).run(
        network.formats("w8a8"), (network.x,)
    )
    reference = network.traced.run((network.x,))
    assert float((output - reference).norm() / reference.norm()) < 0.02
