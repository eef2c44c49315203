"""How batches are cut into parts, and parts shared among folds."""

import pytest
import torch

from calib.task import Batch
from smpq.value.parts import in_folds, split

MOST = 32


def batches_of(sizes, target=lambda x: x[:, 0]):
    samples = torch.arange(float(sum(sizes)))[:, None]
    return [Batch((x,), target(x)) for x in samples.split(list(sizes))]


def sizes_of(parts):
    return [len(part.inputs[0]) for part in parts]


def counts_of(parts, numbers, folds):
    return [sum(size for size, fold in zip(sizes_of(parts), numbers, strict=True) if fold == k) for k in range(folds)]


@pytest.mark.parametrize(("sizes", "folds"), [([128] * 4, 8), ([64] * 9, 8), ([128, 128], 4), ([4] * 50, 3)])
def test_parts_of_one_size_stay_whole_and_take_turns(sizes, folds):
    parts = split(batches_of(sizes), MOST)
    found, numbers = in_folds(parts, folds)
    assert list(map(id, found)) == list(map(id, parts))
    assert numbers == [number % folds for number in range(len(parts))]


@pytest.mark.parametrize(
    ("sizes", "folds"), [([33] * 16, 8), ([100] * 5, 7), ([100] * 5 + [12], 8), ([70, 100, 130], 4), ([1, 64], 2)]
)
@pytest.mark.parametrize("at_once", [MOST, 72])
def test_folds_of_other_parts_are_as_large_as_each_other(sizes, folds, at_once):
    parts = split(batches_of(sizes), at_once)
    found, numbers = in_folds(parts, folds)
    counts = counts_of(found, numbers, folds)
    if len(set(sizes_of(parts))) > 1:
        assert max(counts) - min(counts) < folds
        assert len(found) <= len(parts) + folds
    assert max(sizes_of(found)) <= at_once
    assert torch.equal(torch.cat([part.inputs[0] for part in found]), torch.arange(float(sum(sizes)))[:, None])
    assert torch.equal(torch.cat([part.target for part in found]), torch.arange(float(sum(sizes))))


@pytest.mark.parametrize(
    "target",
    [
        lambda x: None,
        lambda x: x.flatten().tolist(),
        lambda x: tuple(x.flatten().tolist()),
        lambda x: x.flatten().numpy(),
        lambda x: {"row": x, "name": x.flatten().tolist()},
    ],
)
def test_every_target_with_rows_is_cut(target):
    (batch,) = batches_of([70], target)
    parts = split([batch], MOST)
    assert sizes_of(parts) == [32, 32, 6]
    for part, rows in zip(parts, batch.inputs[0].split(MOST), strict=True):
        assert repr(part.target) == repr(target(rows))
        assert torch.equal(part.inputs[0], rows)


def test_others_stay_whole():
    (batch,) = batches_of([70], lambda x: {"row": x, "scale": 2.0})
    found, numbers = in_folds(split([batch, *batches_of([70])], MOST), 2)
    assert found[0] is batch
    assert counts_of(found, numbers, 2) == [70, 70]
