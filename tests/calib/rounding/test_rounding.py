import pytest
import torch
from torch import Tensor

from calib.errors import UserError
from calib.formats.integers import integer
from calib.formats.number_type import NUMBER_TYPES
from calib.formats.quantizers import QuantizedWeight
from calib.rounding import ROUNDINGS, Moments, gptq, round_gptq, round_nearest, rounding_from_name
from calib.rounding.base import search_scale

OUT, LENGTH = 12, 32


def correlated(groups: int = 1, seed: int = 0) -> Moments:
    """Inputs that share a few causes, as the patches of an image do."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(groups, 400, 6, generator=generator)
    mix = torch.randn(groups, 6, LENGTH, generator=generator)
    x = causes @ mix + 0.1 * torch.randn(groups, 400, LENGTH, generator=generator)
    return Moments(x.transpose(1, 2) @ x / 400)


def weight_of(seed: int = 1, rows: int = OUT) -> Tensor:
    return torch.randn(rows, LENGTH, generator=torch.Generator().manual_seed(seed))


def output_error(weight: Tensor, rounded: QuantizedWeight, moments: Moments) -> float:
    """Mean squared error of the layer's output: the trace of dW H dW', by group."""
    groups = moments.matrix.shape[0]
    difference = (rounded.dequantize() - weight).reshape(groups, -1, weight.shape[1])
    return float(torch.einsum("gri,gij,grj->", difference, moments.matrix, difference))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_gptq_lowers_the_error_of_the_output_on_correlated_inputs(bits, seed):
    moments, weight = correlated(seed=seed), weight_of(seed + 10)
    nearest, better = (r(weight, moments, integer(bits), None, torch.zeros(OUT)) for r in (round_nearest, round_gptq))
    assert output_error(weight, better, moments) < 0.5 * output_error(weight, nearest, moments)


def test_gptq_on_independent_inputs_is_nearest_on_the_same_grid():
    weight = weight_of()
    rounded = round_gptq(weight, Moments(torch.eye(LENGTH)[None]), integer(4), None, torch.zeros(OUT))
    low, high = integer(4).limits
    expected = torch.clamp(torch.round(weight / rounded.scale[:, None]), low, high)
    assert torch.equal(rounded.values.float(), expected)


def test_gptq_does_the_same_with_all_columns_at_once(monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(500, 20) @ torch.randn(20, 300) + 0.1 * torch.randn(500, 300)
    moments, weight = Moments((x.T @ x / 500)[None]), torch.randn(4, 300)
    blocked = round_gptq(weight, moments, integer(4), None, torch.zeros(4))
    monkeypatch.setattr(gptq, "_COLUMNS_AT_ONCE", 300)
    whole = round_gptq(weight, moments, integer(4), None, torch.zeros(4))
    assert (blocked.values != whole.values).float().mean() < 0.01  # up to the order of the sums


@pytest.mark.parametrize("method", [round_nearest, round_gptq])
@pytest.mark.parametrize("block", [None, 8])
def test_groups_are_solved_each_alone(method, block):
    moments, weight, floor = correlated(groups=3), weight_of(), torch.rand(OUT) * 0.01
    together = method(weight, moments, integer(4), block, floor)
    rows = OUT // 3
    for group in range(3):
        part = slice(group * rows, (group + 1) * rows)
        alone = method(weight[part], Moments(moments.matrix[group : group + 1]), integer(4), block, floor[part])
        torch.testing.assert_close(together.scale[part], alone.scale)
        # a value on the border of two integers may fall either way with the order of the sums
        assert (together.values[part] != alone.values).float().mean() < 0.01


@pytest.mark.parametrize("method", ROUNDINGS.values(), ids=ROUNDINGS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_fit_their_bits_and_use_them(method, bits):
    rounded = method(weight_of() * 7, correlated(), integer(bits), None, torch.zeros(OUT))
    low, high = integer(bits).limits
    assert rounded.values.dtype == torch.int8
    assert rounded.bits == bits
    assert low <= int(rounded.values.min()) <= low // 2
    assert max(high // 2, 1) <= int(rounded.values.max()) <= high


@pytest.mark.parametrize("method", ROUNDINGS.values(), ids=ROUNDINGS)
def test_a_scale_for_every_block(method):
    weight, moments = weight_of(), correlated()
    weight[:, :8] *= 100  # one block of large weights must not cost the others their precision
    rounded = method(weight, moments, integer(4), 8, torch.zeros(OUT))
    assert rounded.scale.shape == (OUT, LENGTH // 8)
    assert rounded.block == 8
    whole = method(weight, moments, integer(4), None, torch.zeros(OUT))
    small = slice(8, None)
    error, error_whole = ((r.dequantize() - weight)[:, small].square().mean() for r in (rounded, whole))
    assert error < 0.1 * error_whole


@pytest.mark.parametrize("method", ROUNDINGS.values(), ids=ROUNDINGS)
@pytest.mark.parametrize("block", [None, 8])
def test_rows_of_zeros_stay_zero_and_get_a_small_step(method, block):
    weight = weight_of()
    weight[3] = 0.0
    floor = torch.zeros(OUT)
    floor[3] = 1e-5
    rounded = method(weight, correlated(), integer(4), block, floor)
    assert not rounded.values[3].any()
    torch.testing.assert_close(rounded.scale[3], torch.full_like(rounded.scale[3], 1e-5))
    everything = method(
        torch.zeros(OUT, LENGTH), Moments(torch.zeros(1, LENGTH, LENGTH)), integer(4), block, torch.zeros(OUT)
    )
    assert not everything.values.any()
    # a bias is counted in this step times that of the input, which is 0.01 or so
    assert bool(((everything.scale > 0) & (everything.scale < 1e-5)).all())


@pytest.mark.parametrize("method", ROUNDINGS.values(), ids=ROUNDINGS)
@pytest.mark.parametrize("block", [None, 8])
def test_no_step_is_below_its_floor(method, block):
    floor = torch.zeros(OUT)
    floor[2], floor[5] = 10.0, 0.5
    rounded = method(weight_of(), correlated(), integer(4), block, floor)
    assert bool((rounded.scale.reshape(OUT, -1) >= floor[:, None]).all())
    free = method(weight_of(), correlated(), integer(4), block, torch.zeros(OUT))
    assert torch.equal(rounded.scale[[0, 1, 3]], free.scale[[0, 1, 3]])


@pytest.mark.parametrize("method", ROUNDINGS.values(), ids=ROUNDINGS)
def test_the_same_input_gives_the_same_integers_and_is_left_alone(method):
    weight, moments = weight_of(), correlated()
    kept = weight.clone(), moments.matrix.clone()
    first, second = (method(weight, moments, integer(3), None, torch.zeros(OUT)) for _ in range(2))
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.scale, second.scale)
    assert torch.equal(weight, kept[0])
    assert torch.equal(moments.matrix, kept[1])


def test_an_input_that_is_always_zero_does_no_harm():
    moments, weight = correlated(), weight_of()
    moments.matrix[0, 5, :] = 0
    moments.matrix[0, :, 5] = 0
    rounded = round_gptq(weight, moments, integer(4), None, torch.zeros(OUT))
    assert bool(torch.isfinite(rounded.scale).all())
    assert output_error(weight, rounded, moments) < output_error(
        weight, round_nearest(weight, moments, integer(4), None, torch.zeros(OUT)), moments
    )


def test_the_clip_search_serves_what_is_important():
    weight = torch.tensor([[1.0, 0.30, 0.31, 0.29]])
    only_small = search_scale(weight, torch.tensor([[0.0, 1.0, 1.0, 1.0]]), integer(2), torch.zeros(1))
    only_large = search_scale(weight, torch.tensor([[1.0, 0.0, 0.0, 0.0]]), integer(2), torch.zeros(1))
    assert float(only_small) == pytest.approx(0.3, abs=0.02)
    assert float(only_large) == pytest.approx(1.0)


def test_an_unknown_name_lists_the_known_ones():
    assert rounding_from_name("gptq") is round_gptq
    with pytest.raises(UserError, match="gptq, nearest"):
        rounding_from_name("down")


@pytest.mark.parametrize("seed", range(4))
def test_searching_the_step_with_gptq_itself_beats_the_step_for_nearest_rounding(seed, monkeypatch):
    weight, moments = weight_of(seed), correlated(seed=seed)
    searched = output_error(weight, round_gptq(weight, moments, integer(2), None, torch.zeros(OUT)), moments)
    monkeypatch.setattr(gptq, "_STEPS", (1.0,))
    single = output_error(weight, round_gptq(weight, moments, integer(2), None, torch.zeros(OUT)), moments)
    assert searched < 0.95 * single


def dead_and_huge(groups_of: int = 9) -> Moments:
    """Depthwise channels: usual ones, nearly dead, dead, equal taps, one huge column, and rounding errors below
    zero.
    """
    x = torch.randn(500, groups_of, generator=torch.Generator().manual_seed(2))
    found = [(x * scale).T @ (x * scale) / 500 for scale in (1.0, 1e-4, 1e-10, 1e-20, 1e-25, 0.0, 1e10, 1e15)]
    equal = x[:, :1].expand(-1, groups_of)
    one_huge = torch.where(torch.arange(groups_of) == 3, 1e18, 1.0) * x
    return Moments(torch.stack([*found, equal.T @ equal / 500, one_huge.T @ one_huge / 500, -torch.eye(groups_of)]))


def test_every_factor_exists():
    moments = dead_and_huge()
    factor = moments.inverse_factor
    assert torch.isfinite(factor).all()
    assert (torch.diagonal(factor, dim1=1, dim2=2) > 0).all()
    assert torch.equal(Moments(moments.matrix.clone()).inverse_factor, factor)


@pytest.mark.parametrize("method", [round_nearest, round_gptq])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_tiny_inputs_and_weights_are_rounded_as_usual_ones_are(method, bits):
    weight = weight_of()
    usual = method(weight, correlated(), integer(bits), None, torch.zeros(OUT))
    for power in (-20, -60, -100):
        weights = method(weight * 2.0**power, correlated(), integer(bits), None, torch.zeros(OUT))
        assert torch.equal(weights.values, usual.values)
        assert torch.equal(weights.scale, usual.scale * 2.0**power)
    inputs = method(weight, Moments(correlated().matrix * 2.0**-120), integer(bits), None, torch.zeros(OUT))
    assert torch.equal(inputs.values, usual.values)


def test_dead_channels_are_rounded_to_something_near():
    moments = dead_and_huge()
    weight = weight_of(rows=len(moments.matrix))[:, :9]
    rounded = round_gptq(weight, moments, integer(8), None, torch.zeros(len(weight)))
    assert torch.isfinite(rounded.scale).all()
    assert (rounded.dequantize() - weight).abs().mean() < 0.3


@pytest.mark.parametrize("method", [round_nearest, round_gptq])
@pytest.mark.parametrize("name", ["t7", "t8"])
def test_one_scale_for_all_channels_is_one_number_and_at_least_every_floor(method, name):
    weight, floor = weight_of() * torch.logspace(-2, 0, OUT)[:, None], torch.zeros(OUT)
    rounded = method(weight, correlated(), NUMBER_TYPES[name], None, floor)
    assert rounded.scale.shape == (OUT,)
    assert rounded.scale_array().shape == ()
    assert (rounded.dequantize() - weight).abs().max() <= 20 * rounded.scale[0]
    floor[3] = 0.5
    raised = method(weight, correlated(), NUMBER_TYPES[name], None, floor)
    assert (raised.scale == 0.5).all()


def test_several_scales_where_one_was_said_are_a_bug():
    with pytest.raises(ValueError, match="one scale"):
        QuantizedWeight(NUMBER_TYPES["t7"], torch.ones(2, 2, dtype=torch.int8), torch.tensor([1.0, 2.0])).scale_array()
