import pytest
import torch

from calib.errors import UserError
from calib.formats.format import FP16, formats_from_text
from calib.formats.integers import integer
from calib.formats.quantizers import ActivationQuantizer, QuantizedWeight
from smpq.training.lsq import CastWeight, FixedActivation, LearnedActivation, LearnedWeight, check_learned


def by_hand(weight, step, low, high):
    """LSQ as in the paper, eq. 1 to 3, written with detached rounding; differentiable by autograd itself."""
    scaled = weight / step
    clipped = scaled.clamp(low, high)
    return (clipped + (clipped.round() - clipped).detach()) * step


@pytest.mark.parametrize(("shape", "block"), [((4, 3, 3, 3), None), ((5, 8), None), ((5, 8), 4)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_are_rounded_and_the_gradients_are_those_of_the_paper(shape, block, bits):
    torch.manual_seed(0)
    weight = torch.randn(shape, requires_grad=True)
    start = torch.rand(shape[0] if block is None else (shape[0], shape[1] // block)) + 0.2
    quantizer = LearnedWeight(start, integer(bits), block)
    output = torch.randn(shape)
    rounded = quantizer(weight)
    rounded.backward(output)

    step = start.clone().requires_grad_()
    other = weight.detach().clone().requires_grad_()
    spread = step.repeat_interleave(block, 1) if block else step.reshape(-1, *[1] * (len(shape) - 1))
    expected = by_hand(other, spread, *quantizer.limits)
    expected.backward(output)
    torch.testing.assert_close(rounded, expected)
    torch.testing.assert_close(weight.grad, other.grad)
    largest, n = 2 ** (bits - 1) - 1, weight.numel() / start.numel()
    torch.testing.assert_close(quantizer.step.grad, step.grad / (n * largest) ** 0.5, rtol=1e-4, atol=1e-5)


def test_the_integers_are_those_of_the_forward_pass_and_survive_a_factor():
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3, 3)
    factor = torch.rand(6) * 3 + 0.01
    quantizer = LearnedWeight(torch.rand(6) + 0.1, integer(3))
    quantized = quantizer.quantized(weight, factor)
    assert quantized.values.dtype == torch.int8
    assert set(quantized.values.unique().tolist()) == set(range(-4, 4))
    torch.testing.assert_close(quantized.dequantize(), quantizer(weight) * factor[:, None, None, None])
    blocks = LearnedWeight(torch.rand(6, 2) + 0.1, integer(3), 2).quantized(weight[:, :, 0, 0], factor)
    assert isinstance(blocks, QuantizedWeight)
    assert blocks.scale.shape == (6, 2)
    assert blocks.block == 2


@pytest.mark.parametrize(
    "quantizer",
    [ActivationQuantizer(integer(8), 0.03125, 17, signed=False), ActivationQuantizer(integer(4), 0.25, 0, signed=True)],
)
def test_activations_are_rounded_as_the_engine_does(quantizer):
    torch.manual_seed(0)
    x = torch.randn(8, 3, 5, 5) * 3
    output = torch.randn_like(x)
    low, high = quantizer.real_limits
    for module in (FixedActivation(quantizer), LearnedActivation(quantizer)):
        leaf = x.clone().requires_grad_()
        rounded = module(leaf)
        assert torch.equal(rounded, quantizer(x))
        rounded.backward(output)
        half = quantizer.scale / 2
        assert torch.equal(leaf.grad, output * ((x > low - half) & (x < high + half)))
        assert module.quantizer() == quantizer
    step = torch.tensor(quantizer.scale, requires_grad=True)
    smallest, largest = (limit - quantizer.zero_point for limit in quantizer.limits)
    inside = (x > low - half) & (x < high + half)
    scaled = x / step
    expected = torch.where(
        inside, scaled + (scaled.round() - scaled).detach(), scaled.detach().clamp(smallest, largest).round()
    )
    (expected.clamp(smallest, largest) * step).backward(output)
    n = x.numel() * max(abs(smallest), abs(largest))
    torch.testing.assert_close(module.step.grad, step.grad / n**0.5, rtol=1e-3, atol=1e-4)


def test_steps_stay_positive():
    weight = LearnedWeight(torch.tensor([0.5, 0.25]), integer(4))
    activation = LearnedActivation(ActivationQuantizer(integer(4), 0.1, 3, signed=False))
    with torch.no_grad():
        weight.step.copy_(torch.tensor([-1.0, 0.3]))
        activation.step.fill_(-1.0)
    weight.project()
    activation.project()
    assert torch.equal(weight.step, torch.tensor([0.0005, 0.3]))
    assert 0 < activation.quantizer().scale < 0.001
    assert activation.quantizer().zero_point == 3


def test_half_precision_passes_the_gradient():
    weight = torch.tensor([0.1, 1.0, 1e-9], requires_grad=True)
    rounded = CastWeight(FP16.weight)(weight)
    assert torch.equal(rounded, weight.half().float())
    rounded.sum().backward()
    assert torch.equal(weight.grad, torch.ones(3))


def test_numbers_that_are_no_integers_are_not_trained():
    check_learned([FP16, *formats_from_text("w8a8,w1a2,w4a16b32")])
    for text in ("fp8", "wfp8a16", "w8afp8"):
        with pytest.raises(UserError, match=f"{text} cannot be trained.*leave {text} out of --formats"):
            check_learned(formats_from_text(f"w8a8,{text}"))


def test_one_bit_weights_have_two_levels_and_a_gradient():
    weight = torch.tensor([[0.3, -0.2, 0.0]], requires_grad=True)
    quantizer = LearnedWeight(torch.tensor([0.5]), integer(1))
    rounded = quantizer(weight)
    assert rounded.tolist() == [[0.5, -0.5, 0.5]]
    rounded.sum().backward()
    assert torch.equal(weight.grad, torch.ones(1, 3))
    assert quantizer.quantized(weight, torch.ones(1)).values.tolist() == [[1, -1, 1]]
