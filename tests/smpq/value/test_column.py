from __future__ import annotations

import gc
import weakref

import torch

from smpq.value.column import Column


def test_batches_come_back_in_any_order_and_hold_nothing_of_what_was_given():
    column, given = Column(torch.float64), []
    for number in range(300):
        values = torch.full((7,), number, dtype=torch.float64)
        given.append(weakref.ref(values))
        column.add(number, values)
    del values
    gc.collect()
    assert not any(each() is not None for each in given)
    assert column.of([299, 3]).tolist() == [299.0] * 7 + [3.0] * 7
    assert column.of(range(300)).sum() == 7 * 299 * 150
    other = Column(torch.float64)
    other.add(5, torch.zeros(7))
    other.add(300, torch.zeros(1))
    assert column.shared(other) == [5]
