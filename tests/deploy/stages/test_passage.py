"""Stages on their way through the evaluation data: who computes when, and in which thread."""

import threading

import pytest
import torch

from calib.task import Batch
from deploy.stages.passage import Passage, go_on
from deploy.stages.stage_runners import EngineRunner
from tests.tiny_task import Tiny

BATCHES = [(number, Batch((torch.full((2, 1), float(number)),), torch.zeros(2).long())) for number in range(3)]


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Runner:
    """Gives two logits of each sample; knows in which threads it ran, and meets another runner if it is to."""

    def __init__(self, meeting=None):
        self.threads, self.meeting = [], meeting

    def __call__(self, batch):
        self.threads.append(threading.current_thread() is threading.main_thread())
        if self.meeting is not None:
            self.meeting.wait(20)  # BrokenBarrierError unless the other one computes at the same time
        return torch.cat([batch.inputs[0], -batch.inputs[0]], 1)


def passed(*runners):
    names = ("eager", "onnx", "engine")
    advanced = []
    stages = [Passage(Tiny(), name, runner) for name, runner in zip(names, runners, strict=False)]
    assert go_on(stages, BATCHES, lambda: advanced.append(1)) == stages
    assert len(advanced) == len(stages) * len(BATCHES)
    return stages


def test_an_engine_computes_while_pytorch_does(one_thread):
    meeting = threading.Barrier(2)
    module, engine = Runner(meeting), Runner(meeting)
    first, second = passed(module, EngineRunner(engine, any_thread=True))
    assert (module.threads, engine.threads) == ([True] * 3, [False] * 3)
    assert torch.equal(first.classes.of(range(3)), second.classes.of(range(3)))


def test_an_engine_that_is_bound_to_its_thread_waits(one_thread):
    runner = Runner()
    passed(Runner(), EngineRunner(runner, any_thread=False))
    assert runner.threads == [True] * 3


def test_with_threads_of_its_own_pytorch_computes_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runner = Runner()
        passed(Runner(), EngineRunner(runner, any_thread=True))
    finally:
        torch.set_num_threads(before)
    assert runner.threads == [True] * 3


def test_what_an_engine_raises_in_its_thread_is_raised(one_thread):
    def broken(_):
        raise ValueError("no such kernel")

    with pytest.raises(ValueError, match="no such kernel"):
        passed(Runner(), EngineRunner(broken, any_thread=True))
