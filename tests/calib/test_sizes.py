"""Which sizes the inputs of a model may have."""

import re

import pytest
import torch

from calib.errors import UserError
from calib.sizes import resized, sizes_from_text, sizes_of


def of_one(*shapes):
    return [(shape,) for shape in shapes]


def test_calibration_says_which_axes_are_free():
    sizes = sizes_of(of_one((3, 24, 32), (3, 40, 24)), ["x"])
    assert sizes.free == ((2, 3),)
    assert (sizes.least, sizes.most) == (((3, 24, 24),), ((3, 40, 32),))
    assert sizes.usual == ((3, 40, 24),), "the largest by its elements"
    assert set(sizes.probes) == {((3, 24, 32),), ((3, 40, 24),)}
    assert sizes.allow([torch.zeros(1, 3, 30, 30)])
    with pytest.raises(
        UserError, match="evaluation batch 0 has samples of 3x41x24, and the engine takes 3x24x24 to 3x40x32"
    ):
        sizes.check([torch.zeros(1, 3, 41, 24)], "evaluation batch 0")


def test_one_size_leaves_none_free():
    sizes = sizes_of(of_one((3, 8, 8), (3, 8, 8)), ["x"])
    assert not sizes.any_free
    assert sizes.ranges(["x"]) == {}
    assert not sizes.allow([torch.zeros(1, 3, 8, 9)])


def test_what_is_stated_counts_beside_calibration():
    sizes = sizes_of(of_one((3, 24, 24)), ["x"], [sizes_from_text("x=4x3x32x32:4x3x16x32:4x3x64x32")], samples=4)
    assert sizes.usual == ((3, 32, 32),)
    assert (sizes.least, sizes.most) == (((3, 16, 24),), ((3, 64, 32),))
    assert {((3, 16, 24),), ((3, 64, 32),), ((3, 32, 32),), ((3, 24, 24),)} == set(sizes.probes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "is no shape of an input"),
        ("x=1x3:1x2", "is no shape of an input"),
        ("x=1x0", "from 1 up"),
        ("x=1x3:1x4:1x5", "lies between its least and its most"),
        ("x=1x3:1x2:2x5", "the number of samples comes first"),
        ("y=1x3x24x24", "the model has no such input; it has x"),
        ("x=1x3x24", "it states 3 sizes, and calibration() gives 4"),
        ("x=2x3x24x24", "is that of --batch, 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        sizes_of(of_one((3, 24, 24)), ["x"], [sizes_from_text(text)])


@pytest.mark.parametrize("shape", [(2, 3), (5, 2), (9, 1), (3, 4)])
def test_samples_are_cut_or_repeated(shape):
    given = torch.arange(24).reshape(2, 3, 4)
    found = resized(given, shape)
    assert found.shape == (2, *shape)
    rows, columns = torch.meshgrid(torch.arange(shape[0]) % 3, torch.arange(shape[1]) % 4, indexing="ij")
    assert torch.equal(found, given[:, rows, columns])


def test_nothing_can_be_repeated():
    assert torch.equal(resized(torch.zeros(1, 0), (2,)), torch.zeros(1, 2))
