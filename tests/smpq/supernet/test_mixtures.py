import pytest
import torch

from calib.formats.integers import integer
from calib.formats.quantizers import ActivationQuantizer
from smpq.supernet.mixtures import FormatMixture, MixedActivation, MixedWeight, SharedRounding, blend
from smpq.training.lsq import LearnedActivation, LearnedWeight

GRIDS = [
    ActivationQuantizer(integer(4), 0.2, 3, signed=False),
    ActivationQuantizer(integer(8), 0.013, 40, signed=False),
]


def mixture(grids=GRIDS, *, with_float=False):
    torch.manual_seed(0)
    candidates = [*map(LearnedActivation, grids), *([None] if with_float else [])]
    choice = FormatMixture(len(candidates))
    with torch.no_grad():
        choice.alpha.copy_(torch.randn(len(candidates)))
    return MixedActivation(candidates, choice)


@pytest.mark.parametrize("with_float", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_mixed_activation_and_its_gradients_are_those_of_the_sum(with_float, memory_format):
    x = torch.randn(4, 3, 5, 5).mul(2).contiguous(memory_format=memory_format).requires_grad_()
    weights = torch.randn(4, 3, 5, 5)
    mixed = mixture(with_float=with_float)
    found = mixed(x)
    (found * weights).sum().backward()
    parameters = list(mixed.parameters())
    gradients = [x.grad, *(parameter.grad for parameter in parameters)]
    x.grad = None
    mixed.zero_grad()
    expected = blend([candidate(x) for candidate in mixed.candidates], mixed.choice.shares())
    assert torch.allclose(found, expected, atol=1e-6)
    (expected * weights).sum().backward()
    for one, other in zip(gradients, [x.grad, *(parameter.grad for parameter in parameters)], strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_one_grid_is_exactly_its_quantiser():
    x = torch.randn(2, 3, 5, 5)
    for index, grid in enumerate(GRIDS):
        shares = [0.0, 0.0]
        shares[index] = 1.0
        assert torch.equal(SharedRounding(GRIDS, shares)(x), grid(x))
        assert torch.equal(mixture([grid])(x), grid(x))


def test_a_float_candidate_is_the_tensor_itself():
    x = torch.randn(2, 3)
    assert torch.equal(SharedRounding([GRIDS[0], None], [0.0, 1.0])(x), x)
    weight = torch.randn(2, 3)
    assert torch.equal(MixedWeight([None], FormatMixture(1))(weight), weight)


def test_a_mixed_weight_is_the_sum_of_its_candidates():
    weight, step = torch.randn(3, 4), torch.full((3,), 0.3)
    candidates = [LearnedWeight(step, integer(2)), LearnedWeight(step / 4, integer(4)), None]
    choice = FormatMixture(3)
    with torch.no_grad():
        choice.alpha.copy_(torch.tensor([0.0, 1.0, -1.0]))
    shares = choice.shares().detach()
    assert float(shares.sum()) == pytest.approx(1.0)
    expected = shares[0] * candidates[0](weight) + shares[1] * candidates[1](weight) + shares[2] * weight
    assert torch.allclose(MixedWeight(candidates, choice)(weight), expected)


def test_steps_stay_positive():
    mixed = mixture()
    with torch.no_grad():
        mixed.candidates[0].step.fill_(-1.0)
    mixed.project()
    assert float(mixed.candidates[0].step.detach()) > 0
