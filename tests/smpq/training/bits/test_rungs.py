"""Widths that are taken away and given back, in a graph."""

from __future__ import annotations

import pytest
import torch

from calib.formats.integers import integer
from smpq.training.bits.rungs import ratio
from tests.smpq.training.bits.trainable import rungs


@pytest.mark.parametrize(("fine", "coarse"), [(8, 4), (4, 3), (3, 2), (4, 1), (2, 1)])
def test_coarse_values_are_among_the_fine_ones(fine, coarse):
    factor = ratio(integer(fine), integer(coarse))
    low, high = integer(coarse).limits
    values = torch.arange(low, high + 1, integer(coarse).spacing) * factor
    assert torch.equal(integer(fine).round_(values.clone(), *integer(fine).limits), values)


def test_a_width_that_is_given_back_changes_nothing():
    found = rungs()
    found.lower("stem")
    found.lower("stem")
    [(weight, quantizer)] = found.quantizers("stem")
    with torch.no_grad():
        before = quantizer(weight)
        weight.copy_(before)
    assert str(found.policy["stem"]) == "w3a8"
    found.raise_("stem")
    assert (str(found.policy["stem"]), quantizer.grid) == ("w4a8", integer(4))
    with torch.no_grad():
        assert torch.allclose(quantizer(weight), before)


def test_what_was_lost_last_comes_back_first_as_long_as_it_fits():
    found = rungs(avg_bits=5.0)
    for name in list(found.open):
        for _ in range(3 if name == "stem" else 4):
            found.lower(name)
    order = list(found.lowered)
    assert found.met
    assert found.fill() > 0
    assert found.met
    model = found.ceilings[0].model
    assert model.total(found.policy) <= 5
    for name in set(order):
        row, number = found.ladders[name], found.numbers[name]
        if number + 1 < len(row):
            assert model.total(found.policy.with_format(name, row[number + 1])) > 5, f"{name} would have fitted"


def test_they_are_restored_by_what_was_lost():
    found, other = rungs(), rungs()
    for name in ("stem", "head", "stem"):
        found.lower(name)
    other.restore(found.lowered)
    assert other.policy == found.policy
    assert other.quantizers("stem")[0][1].grid == integer(3)
    with pytest.raises(ValueError, match="'stem' has no width to lose"):
        other.restore(["stem"] * 9)
    with pytest.raises(ValueError, match="'nobody' has no width"):
        other.restore(["nobody"])
