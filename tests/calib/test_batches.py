import weakref

import numpy as np
import pytest
import torch
from torch import nn

import calib.batches
from calib.batches import Batches, add_to_hash, calibration_batches, content_hash, picked, samples_in, selection_batches
from calib.errors import UserError
from calib.network.free_axes import input_names
from calib.sizes import sizes_of
from calib.task import Batch

KIB = 2**-10
BATCH_MB = (4 * 8 + 4 * 8) / 2**20
"""Of a batch of `Loader`, in MB."""
SIZES = sizes_of([((2,),)], input_names(nn.Linear(2, 2), 1))


class Loader:
    """Counts how often it is looped over, and how many batches it has given."""

    def __init__(self, count=6, change=lambda turn, index, x: x):
        self.count, self.change, self.turns, self.given = count, change, 0, 0

    def __iter__(self):
        self.turns += 1
        for index in range(self.count):
            self.given += 1
            x = self.change(self.turns, index, torch.full((4, 2), float(index)))
            yield Batch((x,), torch.zeros(4, dtype=torch.int64))


def limited(loader, batches):
    """Batches with room for so many."""
    return Batches(loader, "calibration", memory_mb=batches * BATCH_MB)


def numbers(batches):
    return [int(batch.inputs[0][0, 0]) for batch in batches]


def test_few_are_kept_and_read_once():
    loader = Loader()
    batches = limited(loader, 6)
    assert batches.in_memory
    assert [numbers(batches) for _ in range(2)] == [list(range(6))] * 2
    assert (numbers([batches[-1]]), numbers(batches[1:3])) == ([5], [1, 2])
    assert loader.turns == 1


def test_more_are_drawn_each_time():
    loader = Loader()
    batches = limited(loader, 5)
    assert not batches.in_memory
    assert [numbers(batches) for _ in range(2)] == [list(range(6))] * 2
    assert loader.turns == 3
    assert (numbers([batches[-1]]), numbers(batches[4:]), numbers(batches[::-2])) == ([5], [4, 5], [5, 3, 1])


def test_what_is_drawn_is_not_kept():
    class Mark:
        pass

    class Marked(Loader):
        def __iter__(self):
            for batch in super().__iter__():
                mark = Mark()
                alive.add(mark)
                yield Batch(batch.inputs, mark)
                del mark

    alive, most = weakref.WeakSet(), 0
    for _ in limited(Marked(50), 3):
        most = max(most, len(alive))
    assert most <= 4, "the first, that of the loop, and those on their way"


def test_only_as_many_are_drawn_as_are_asked_for():
    loader = Loader(count=40)
    batches = limited(loader, 1)
    before = loader.given
    assert numbers([batches[0]]) == [0]
    assert loader.given == before, "the first is kept"
    assert numbers(batches[:3]) == [0, 1, 2]
    assert loader.given == before + 3
    assert numbers(picked(batches, {7, 2}).values()) == [2, 7]
    assert loader.given == before + 3 + 8
    assert picked(batches, ()) == {}


def test_the_lower_of_two_limits_counts(monkeypatch):
    monkeypatch.setattr(calib.batches, "_KEPT_MB", 6 * BATCH_MB)
    assert Batches(Loader(), "calibration").in_memory
    assert Batches(Loader(), "calibration", memory_mb=1.0).in_memory
    assert not Batches(Loader(7), "calibration", memory_mb=1.0).in_memory
    assert not Batches(Loader(), "calibration", memory_mb=5 * BATCH_MB).in_memory


@pytest.mark.parametrize(
    ("change", "index"),
    [
        (lambda turn, index, x: x + 1e-6 if (turn, index) == (2, 3) else x, 3),
        (lambda turn, index, x: x[:3] if (turn, index) == (2, 5) else x, 5),
    ],
    ids=["another value", "another size"],
)
def test_other_batches_are_refused(change, index):
    class Cut(Loader):
        def __iter__(self):
            for batch in super().__iter__():
                yield Batch(batch.inputs, batch.target[: len(batch.inputs[0])])

    batches, seen = limited(Cut(change=change), 2), []
    with pytest.raises(UserError, match=rf"calibration\(\) gives other batches .*batch {index} .*turn off shuffling"):
        seen.extend(batches)
    assert len(seen) == index
    assert numbers(batches) == list(range(6)), "they are the same again the third time"


@pytest.mark.parametrize("count", [5, 7])
def test_another_number_of_batches_is_refused(count):
    loader = Loader()
    batches = limited(loader, 2)
    loader.count = count
    with pytest.raises(UserError, match=r"gives other batches .*batch [56] "):
        list(batches)


def test_a_target_counts():
    turns = []

    class Relabelled(Loader):
        def __iter__(self):
            turns.append(0)
            for batch in super().__iter__():
                yield Batch(batch.inputs, batch.target + len(turns) // 3)

    batches = limited(Relabelled(), 2)
    list(batches)
    with pytest.raises(UserError, match=r"batch 0 is the first"):
        list(batches)


def test_shapes_and_hash_do_not_depend_on_where_they_are():
    kept, drawn = limited(Loader(), 6), limited(Loader(), 1)
    assert kept.content == drawn.content == content_hash(Loader())
    assert kept.shapes == drawn.shapes == (((4, 2),),) * 6
    assert kept.counts == (4,) * 6
    assert samples_in(drawn) == samples_in(list(Loader())) == 24
    assert limited(Loader(7), 1).content != kept.content


def test_calibration_and_selection_are_checked():
    class Own:
        def __init__(self, batches):
            self.selection = lambda: batches

    with pytest.raises(UserError, match="second time"):
        calibration_batches(batch for batch in Loader())
    assert selection_batches(object(), SIZES) is None
    assert numbers(selection_batches(Own(Loader()), SIZES, 1e-9)) == list(range(6))
    with pytest.raises(UserError, match="selection batch 0 has samples of 3, and the engine takes 2"):
        selection_batches(Own([Batch((torch.zeros(1, 3),), None)]), SIZES)
    with pytest.raises(UserError, match=r"selection\(\) failed: TypeError"):
        selection_batches(type("Broken", (), {"selection": lambda self, missing: ()})(), SIZES)


def test_arrays_in_targets_take_memory():
    target = [np.zeros(2**10), {"boxes": torch.zeros(2**10)}]
    given = [Batch((torch.zeros(1, 2),), target)] * 3
    assert Batches(given, "calibration", memory_mb=3 * 12 * KIB + 3 * 8 * 2**-20).in_memory
    assert not Batches(given, "calibration", memory_mb=3 * 12 * KIB).in_memory


def test_the_hash_is_of_names_only_for_unknown_objects():
    class Digest(list):
        update = list.append

    one, two = Digest(), Digest()
    add_to_hash(one, object())
    add_to_hash(two, object())
    assert one == two == [b"object\n"]
