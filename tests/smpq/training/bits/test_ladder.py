"""Which formats a training may give."""

from __future__ import annotations

import pytest

from calib.errors import UserError
from calib.formats.format import Format
from smpq.problem.policy import Policy
from smpq.solve.allocate import Impossible
from smpq.training.bits.ladder import highest, ladders_of, lowest, uniform_of
from tests.smpq.training.bits.trainable import ceilings, space_of


def texts(row):
    return [str(chosen) for chosen in row]


def test_integers_of_one_activation_by_bits():
    space = space_of("w8a8,w2a8,fp32,w4a8,w4a4,w4a16b2,fp8")
    found = ladders_of(space, ceilings(space, avg_bits=3.0))
    assert all(texts(row) == ["w2a8", "w4a8", "w8a8"] for row in found.values())
    assert set(map(str, lowest(found).formats.values())) == {"w2a8"}
    assert set(map(str, highest(found).formats.values())) == {"w8a8"}


def test_narrower_activations_where_the_budget_needs_them():
    space = space_of("w2a8,w8a8,w2a4,w8a4")
    bops = ceilings(space, bops=1.0)[0].model
    wide, narrow = (bops.total(space.uniform(space.formats["stem"][index])) for index in (0, 2))
    assert texts(ladders_of(space, ceilings(space, bops=wide))["stem"]) == ["w2a8", "w8a8"]
    assert texts(ladders_of(space, ceilings(space, bops=narrow))["stem"]) == ["w2a4", "w8a4"]
    with pytest.raises(Impossible, match="no choice of widths that can be trained meets the budget"):
        ladders_of(space, ceilings(space, bops=narrow / 2))


def test_a_layer_that_is_offered_no_narrow_activation_has_its_narrowest_one():
    space = space_of("w2a8,w8a8,w2a4,w8a4", head="w8a8,w2a8,fp32")
    bops = ceilings(space, bops=1.0)[0].model
    least = Policy({name: Format.from_text("w2a8" if name == "head" else "w2a4") for name in space.formats})
    found = ladders_of(space, ceilings(space, bops=bops.total(least)))
    assert (texts(found["stem"]), texts(found["head"])) == (["w2a4", "w8a4"], ["w2a8", "w8a8"])


def test_a_layer_without_such_formats_stays():
    space = space_of("w2a8,w4a8", head="fp32", plain="w4a16b2")
    found = ladders_of(space, ceilings(space, size=1e9))
    assert texts(found["head"]) == ["fp32"]
    assert texts(found["plain"]) == ["w4a16b2"]


def test_nothing_to_choose():
    for formats, message in (("fp32,fp8", "what can be trained: give --formats"), ("w8a8,fp32", "nothing to find")):
        space = space_of(formats)
        with pytest.raises(UserError, match=message):
            ladders_of(space, ceilings(space, size=1e9))


def test_the_widest_uniform_format_within_the_budget():
    space = space_of("w2a8,w4a8,w8a8,w2a4,w4a4", head="w8a8,fp32", plain="fp32")

    def chosen(**limits):
        found = uniform_of(space, ceilings(space, **limits))
        assert all(len(row) == 1 for row in found.values())
        return {name: str(row[0]) for name, row in found.items()}

    wide = chosen(size=1e9)
    assert (wide["stem"], wide["head"], wide["plain"]) == ("w8a8", "w8a8", "fp32")
    size = ceilings(space, size=1.0)[0].model
    limit = size.total(highest(uniform_of(space, ceilings(space, size=1e9))))
    narrow = chosen(size=limit - 1)
    assert (narrow["stem"], narrow["head"], narrow["plain"]) == ("w4a8", "w8a8", "fp32")
    with pytest.raises(Impossible):
        chosen(size=1.0)


def test_one_width_is_enough_for_a_uniform_format():
    space = space_of("w4a4")
    assert {str(row[0]) for row in uniform_of(space, ceilings(space, avg_bits=4.0)).values()} == {"w4a4"}
    with pytest.raises(UserError, match="there is nothing to find"):
        ladders_of(space, ceilings(space, avg_bits=4.0))
