import pytest
import torch

import calib.observers
from calib.errors import UserError
from calib.formats.integers import integer
from calib.formats.quantizers import quantizer_from_range
from calib.observers import OBSERVERS, Observed, observer_from_name


def seen(*tensors: torch.Tensor) -> Observed:
    observed = Observed()
    for tensor in tensors:
        observed.add(tensor)
    return observed


def heavy_tail() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.cat([torch.randn(200_000), torch.tensor([60.0, -55.0])])


def error_of(name: str, values: torch.Tensor, bits: int, scheme: str) -> float:
    low, high = observer_from_name(name)(seen(*values.split(10_000)), integer(bits), scheme)
    return float((quantizer_from_range(low, high, integer(bits), scheme)(values) - values).square().mean())


def test_extremes_are_exact_over_all_batches_and_the_sample_is_small():
    large = torch.zeros(200_000)
    large[12_345], large[54_321] = 7.0, -3.0  # not on the sampled positions
    observed = seen(large.reshape(200, 1000), torch.tensor([[1.0]]))
    assert (observed.low, observed.high) == (-3.0, 7.0)
    sample = observed.sample()
    assert sample.numel() < 50_000
    assert (float(sample.min()), float(sample.max())) == (-3.0, 7.0)


def test_the_sample_does_not_stay_on_one_channel():
    channels = torch.arange(64).repeat(4096).float()  # channels last, 16 values apart from each other on average
    assert set(seen(channels).sample().tolist()) == set(range(64))


def test_the_sample_does_not_stay_on_some_channels_of_tokens():
    tokens = torch.arange(219.0).expand(32, 173, 219)
    assert tokens.numel() // 16_384 | 1 == 73, "a factor of the number of channels"
    assert len(set(seen(tokens).sample().tolist())) == 219


@pytest.mark.parametrize("shape", [(128, 3, 32, 32), (128, 16, 32, 32), (128, 32, 16, 16), (128, 64, 8, 8), (128, 64)])
def test_sizes_that_are_powers_of_two_keep_their_stride(shape):
    values = torch.rand(shape)
    flat, stride = values.reshape(-1), max(values.numel() // 16_384, 1) | 1
    for order in (torch.contiguous_format, torch.channels_last)[: len(shape) // 2]:
        assert torch.equal(seen(values.contiguous(memory_format=order)).parts[0], flat[::stride])


def test_the_sample_is_a_copy():
    values = torch.ones(10)
    observed = seen(values)
    values.fill_(5.0)
    assert float(observed.sample().max()) == 1.0


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
@pytest.mark.parametrize("sign", [1, -1], ids=["above zero", "below zero"])
def test_every_range_lies_within_what_was_seen_and_holds_zero(name, scheme, sign):
    torch.manual_seed(0)
    observed = seen(sign * (torch.rand(5000) + 1))
    low, high = observer_from_name(name)(observed, integer(8), scheme)
    assert observed.low <= low <= 0 <= high <= observed.high
    assert high - low > 1.0, "the range left out nearly everything"


@pytest.mark.parametrize("name", OBSERVERS)
def test_a_tensor_of_zeros(name):
    low, high = observer_from_name(name)(seen(torch.zeros(100)), integer(8), "affine")
    assert (low, high) == (0.0, 0.0)
    assert torch.equal(quantizer_from_range(low, high, integer(8), "affine")(torch.zeros(3)), torch.zeros(3))


def test_minmax_covers_everything():
    assert observer_from_name("minmax")(
        seen(torch.tensor([-1.0, 5.0]), torch.tensor([-2.0, 3.0])), integer(8), "affine"
    ) == (
        -2.0,
        5.0,
    )


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
@pytest.mark.parametrize("bits", [4, 8])
def test_mse_beats_minmax_on_a_heavy_tail(bits, scheme):
    values = heavy_tail()
    assert error_of("mse", values, bits, scheme) < 0.9 * error_of("minmax", values, bits, scheme)


def test_mse_keeps_the_whole_range_of_uniform_values():
    low, high = observer_from_name("mse")(seen(torch.linspace(-1, 1, 4001)), integer(8), "symmetric")
    assert (low, high) == pytest.approx((-1.0, 1.0), abs=0.02)


def test_percentile_and_entropy_clip_outliers():
    observed = seen(*heavy_tail().split(10_000))
    for name in ("percentile", "entropy"):
        low, high = observer_from_name(name)(observed, integer(8), "symmetric")
        assert -20 < low < -2, name
        assert 2 < high < 20, name


def test_entropy_keeps_the_sign_of_the_range():
    low, high = observer_from_name("entropy")(seen(*heavy_tail().abs().split(10_000)), integer(8), "affine")
    assert low == 0.0
    assert 2 < high < 20


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match="mse, minmax, percentile, entropy"):
        observer_from_name("average")


@pytest.mark.parametrize("name", list(OBSERVERS))
def test_tiny_values_get_the_range_that_large_ones_get(name):
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    usual, tiny = Observed(), Observed()
    usual.add(values)
    tiny.add(values * 2.0**-90)
    for found, wanted in zip(
        OBSERVERS[name](tiny, integer(8), "affine"), OBSERVERS[name](usual, integer(8), "affine"), strict=True
    ):
        assert found == pytest.approx(wanted * 2.0**-90, rel=1e-3)


def test_the_sample_of_a_tensor_does_not_grow_with_the_number_of_batches(monkeypatch):
    monkeypatch.setattr(calib.observers, "_MOST_SAMPLES", 1000)
    seen, generator = Observed(), torch.Generator().manual_seed(1)
    for index in range(200):  # the first half is near 0, the second near 10; in columns of two scales
        seen.add(torch.randn(30, 2, generator=generator) * torch.tensor([1.0, 3.0]) + 10 * (index >= 100))
        assert sum(map(len, seen.parts)) <= 1000
    values = seen.sample()
    assert 400 < len(values) <= 1002
    assert abs(float((values > 5).double().mean()) - 0.5) < 0.06, "all batches count alike"
    assert abs(float(values[values < 5].std()) - 5**0.5) < 0.3, "and so do all columns"


def test_a_thinned_sample_is_the_same_each_time(monkeypatch):
    monkeypatch.setattr(calib.observers, "_MOST_SAMPLES", 100)

    def sampled():
        seen = Observed()
        for index in range(20):
            seen.add(torch.arange(30.0) + index)
        return seen.sample()

    assert torch.equal(sampled(), sampled())
