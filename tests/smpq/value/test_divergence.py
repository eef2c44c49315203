"""How a task's divergence is called: wherever outputs are compared, it is given the target if it takes one."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from calib.errors import UserError
from calib.formats.format import FP32
from calib.task import Batch
from smpq.methods.fima_q import fima_q
from smpq.methods.ohq import masked_divergences
from smpq.problem.groups import find_groups
from smpq.problem.policy import Space
from smpq.reconstruction.reconstruct import reconstruct
from smpq.reconstruction.settings import ReconstructionSettings
from smpq.training.loop import distilled
from smpq.value.divergence import TaskDivergence, divergence
from smpq.value.rows import has_rows, joined, rows_of
from tests.smpq.problems import W8A8
from tests.smpq.tunable import Task, tunable

QUICK = ReconstructionSettings(loss="brecq", iterations=4, samples=64, batch=16)
TARGET = torch.arange(6)


class Padded(Task):
    """Cannot do without the target; notes how many samples it was of."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def divergence(self, output, float_output, target):
        assert len(target) == len(output)
        self.seen.append(target)
        return divergence(output, float_output)


@pytest.fixture(scope="module")
def given():
    return tunable(rounding="nearest")


@contextmanager
def bar(_name, _total):
    yield lambda: None


@pytest.mark.parametrize(
    ("function", "takes"),
    [
        (lambda output, float_output: output, False),
        (lambda output, float_output, target: target, True),
        (lambda output, float_output, target=None: target, True),
        (lambda output, float_output, scale=2: output, False),
    ],
)
def test_the_target_is_given_to_who_names_it(function, takes):
    made = TaskDivergence(SimpleNamespace(divergence=function))
    assert made.takes_target is takes
    assert torch.equal(made(TARGET + 1, TARGET + 2, TARGET), TARGET if takes else TARGET + 1)


def test_it_is_distilled_with_the_target():
    task, output = Padded(), torch.randn(6, 3, requires_grad=True)
    distilled(task, output, torch.randn(6, 3), Batch((torch.zeros(6, 1),), TARGET), 2.0).backward()
    assert torch.equal(task.seen[0], TARGET)


def test_a_reconstruction_gives_each_run_its_own_targets(given):
    task = Padded()
    reconstruct(given.subject("w2a8", task=task), given.batches, QUICK)
    runs = [target for target in task.seen if len(target) == QUICK.batch]
    expected = torch.cat([batch.target for batch in given.batches]).split(QUICK.batch)
    assert len(runs) % len(expected) == 0
    assert all(torch.equal(found, expected[number % 4]) for number, found in enumerate(runs))


def test_targets_that_cannot_be_cut_are_told_where_they_are_needed(given):
    odd = [Batch(batch.inputs, {"labels": batch.target, "scale": 2.0}) for batch in given.batches]
    with pytest.raises(UserError, match="cannot be cut into samples"):
        reconstruct(given.subject("w2a8", task=Padded()), odd, replace(QUICK, value="kl"))


def test_methods_give_the_target(given):
    groups = find_groups(given.traced, given.units)
    space = Space(groups, {group.name: (W8A8, FP32) for group in groups}, FP32)
    task = Padded()
    problem = SimpleNamespace(
        task=task, traced=given.traced, space=space, judging=given.batches, device="cpu", seed=0,
        fake_quantizer=given.fake, progress=SimpleNamespace(bar=bar),
    )  # fmt: skip
    masked_divergences(problem, [given.units[0].weight])
    ended = len(task.seen)
    fima_q(problem)
    assert 0 < ended < len(task.seen)


@pytest.mark.parametrize(
    "target",
    [
        None,
        TARGET,
        TARGET.numpy(),
        list("abcdef"),
        tuple({"boxes": torch.zeros(n, 4)} for n in range(6)),
        {"labels": TARGET, "names": list("abcdef"), "none": None},
    ],
)
def test_targets_that_can_be_cut(target):
    assert has_rows(target, 6)
    again = joined([rows_of(target, slice(start, start + 2)) for start in (0, 2, 4)])
    assert repr(again) == repr(target)


@pytest.mark.parametrize(
    "target",
    [TARGET[:5], torch.tensor(6), "abcdef", 6, [1, 2], {"labels": TARGET, "scale": 2.0}, (TARGET,) * 6],
)
def test_targets_that_are_left_whole(target):
    assert not has_rows(target, 6)


def test_columns_of_few_samples_are_not_taken_for_rows():
    boxes, labels = torch.zeros(5, 4), torch.zeros(2)
    assert not has_rows((boxes, labels), 2)
    assert has_rows([torch.zeros(n, 4) for n in range(9)], 9), "no target has so many columns"
