"""Whether numbers are finite."""

import pytest
import torch

from calib.finite import all_finite, finite_values

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_one_odd_value_is_found_wherever_it_stands(dtype, odd):
    values = torch.linspace(-3, 3, 3 * 41).to(dtype).reshape(3, 41)
    assert all_finite(values)
    for position in ((0, 0), (1, 17), (2, 40)):
        broken = values.clone()
        broken[position] = odd
        assert not all_finite(broken)
        assert not all_finite(broken.T)  # not contiguous
        assert torch.equal(finite_values(broken), broken[broken.isfinite()])
    assert finite_values(values) is values


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_stored_types(dtype):
    values = torch.ones(5, 7).to(dtype)
    assert all_finite(values)
    broken = torch.ones(5, 7)
    broken[2, 3] = float("nan")
    assert not all_finite(broken.to(dtype))


def test_complex_numbers():
    values = torch.ones(4, dtype=torch.complex64)
    assert all_finite(values)
    assert all_finite(values.conj())
    values[1] = complex(0, float("inf"))
    assert not all_finite(values)


@pytest.mark.parametrize("values", [torch.empty(0, 3), torch.arange(5), torch.tensor([True, False])])
def test_what_holds_no_floats_is_finite(values):
    assert all_finite(values)


def test_gradients_are_not_recorded():
    assert all_finite(torch.ones(3, requires_grad=True))
