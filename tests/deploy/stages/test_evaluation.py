"""The evaluation data are read anew each time, one batch after the other, and must be the same."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from calib.errors import UserError
from calib.sizes import sizes_of
from deploy.stages.evaluation import Evaluation, spread_out
from deploy.stages.judging import Judge
from deploy.stages.passage import Passage, go_on
from tests.commands import assert_matches, refused
from tests.tiny_task import Tiny

IMAGES = sizes_of([((1, 6, 6),)], ["x"])


class Streamed(Tiny):
    """Batches that are made when they are asked for; remembers which of them are in memory."""

    def __init__(self, sizes=(3, 3, 2, 4)):
        super().__init__()
        self.sizes, self.made, self.most = sizes, [], 0

    @property
    def alive(self):
        return sum(array() is not None for array in self.made)

    def evaluation(self):
        for index, size in enumerate(self.sizes):
            array = np.full((size, 1, 6, 6), index, np.float32)
            self.made.append(weakref.ref(array))  # it lives as long as any tensor that shares its memory
            self.most = max(self.most, self.alive)
            inputs = torch.from_numpy(array)
            del array
            yield inputs, torch.full((size,), index % 3)
            del inputs


def test_any_beginning_of_the_data_is_spread_over_all_of_it():
    order = spread_out(100)
    assert order[0] == 0
    assert sorted(order) == list(range(100))
    assert max(b - a for a, b in pairwise(sorted(order[:10]))) <= 20


def test_the_batches_of_some_numbers_in_the_order_of_the_data():
    data = Evaluation(Streamed(), IMAGES)
    assert (len(data), data.samples) == (4, 12)
    order = spread_out(4)
    numbers = {number: int(batch.inputs[0].flatten()[0]) for number, batch in data.batches()}
    assert list(numbers.values()) == [0, 1, 2, 3]
    assert [numbers[number] for number in range(4)] == order
    assert [number for number, _ in data.batches(1, 3)] == [number for number in numbers if number in (1, 2)]
    sizes = [(3, 3, 2, 4)[index] for index in order]
    assert [data.count(samples) for samples in (1, sizes[0] + 1, 12, 13)] == [1, 2, 4, 4]


def test_batches_are_not_kept(workspace):
    gc.collect()
    task = Streamed((4,) * 12)
    Judge(replace(workspace, task=task)).run_float()
    assert task.alive == 0
    assert task.most == 1, "none is kept while the next one is made"
    stages = [Passage(task, "float", lambda batch: batch.inputs[0].flatten(1)[:, :3]) for _ in range(2)]
    go_on(stages, Evaluation(task, IMAGES).batches(), lambda: None)
    assert [stage.found.samples for stage in stages] == [48, 48]
    assert task.most == 1


@pytest.mark.parametrize("wrong", [(3, 3, 2), (3, 3, 2, 4, 1), (3, 2, 3, 4)])
def test_other_sizes_the_second_time(wrong):
    task = Streamed()
    data = Evaluation(task, IMAGES)
    task.sizes = wrong
    with pytest.raises(UserError, match=r"evaluation\(\) gives other batches the second time: turn off shuffling"):
        list(data.batches())


def test_other_samples_the_second_time():
    class Shuffled(Tiny):
        def evaluation(self):
            self.calls += 1
            return [(torch.rand(3, 1, 6, 6), torch.zeros(3))]

    data = Evaluation(Shuffled(), IMAGES)
    with pytest.raises(UserError, match="gives other batches"):
        list(data.batches())


@pytest.mark.parametrize("what", ["inputs", "target"])
def test_one_sample_that_is_another_the_second_time(what):
    class Augmented(Tiny):
        def evaluation(self):
            images, labels = torch.ones(3, 1, 6, 6), torch.zeros(3)
            self.calls += 1
            (images if what == "inputs" else labels)[2] = self.calls
            return [(images, labels)]

    data = Evaluation(Augmented(), IMAGES)
    with pytest.raises(UserError, match="gives other batches"):
        list(data.batches())


def test_an_iterator_that_is_used_up():
    class Once(Tiny):
        kept = Streamed().evaluation()

        def evaluation(self):
            return self.kept

    data = Evaluation(Once(), IMAGES)
    with pytest.raises(UserError, match="already used up"):
        list(data.batches())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bool, torch.int64])
def test_samples_of_any_type_are_compared(dtype):
    class Typed(Tiny):
        def evaluation(self):
            return [(torch.arange(3).to(dtype), None)]

    sizes = sizes_of([((),)], ["x"])
    assert [number for number, _ in Evaluation(Typed(), sizes).batches()] == [0]


def test_samples_of_other_sizes_than_the_engine_takes():
    class Larger(Tiny):
        def evaluation(self):
            return [(torch.zeros(2, 1, 6, 6), None), (torch.zeros(2, 1, 7, 6), None)]

    with pytest.raises(UserError, match="evaluation batch 1 has samples of 1x7x6, and the engine takes 1x6x6"):
        Evaluation(Larger(), IMAGES)


def test_the_first_batch_is_looked_at_before_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr(Tiny, "evaluation", lambda _: [(torch.zeros(2, 1, 7, 6), torch.zeros(2))])
    run = tmp_path / "run"
    words = ("--task", "tests.tiny_task:Tiny", "--target", "simulate", "--budget", "size=0.5x", "--out", run)
    assert_matches("evaluation batch 0 has samples of 1x7x6.*--shape", refused("run", *words))
    assert not (run / "scores.json").exists()
