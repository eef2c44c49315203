"""A run whose calibration data do not fit into memory: drawn again, with the same results, or refused."""

import pytest
import torch
from rich.console import Console
from torch import nn

from calib.batches import samples_in
from calib.errors import UserError
from calib.tasks import IN_MEMORY, held_in_memory
from deploy.run.settings import Settings
from deploy.stages.run_all import open_run
from deploy.terminal.progress import Progress
from smpq.problem.policy import Policy
from smpq.value.workers.resources import Resources

QUIET = Progress(Console(quiet=True))
COUNT = 12
KIB = 2**-10
LITTLE = Resources(workers=1, memory_limit_mb=19 * KIB)
"""Enough to round one layer of 16 inputs; the batches take 27 KiB, so they are drawn."""


class Data:
    """Images that are made anew each time; from the turn `changes` on, the last batch is another one."""

    def __init__(self, changes=10**9):
        self.turns, self.changes = 0, changes

    def __iter__(self):
        self.turns += 1
        for index in range(COUNT):
            x = torch.randn(32, 16, generator=torch.Generator().manual_seed(index))
            yield x + (self.turns >= self.changes and index == COUNT - 1), torch.arange(32) % 4


class Own:
    name, metric_name = "own", "top-1"

    def __init__(self, data):
        self.calibration = self.evaluation = lambda: data

    def model(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()

    def metric(self, output, target):
        return (output.argmax(1) == target).double()

    def loss(self, output, target):
        return nn.functional.cross_entropy(output, target, reduction="none")


def opened(path, data, resources, samples=16):
    settings = Settings(task=IN_MEMORY, formats="w8a8,w4a16b16,fp32", samples=samples)
    with held_in_memory(Own(data)):
        return open_run(path, QUIET, settings, resources)


def found(path, resources):
    with opened(path, Data(), resources) as workspace:
        policy = Policy(
            dict.fromkeys(workspace.space.formats, workspace.space.formats[workspace.space.groups[0].name][0])
        )
        return workspace.batches.in_memory, (
            workspace.fingerprint,
            workspace.fake_quantizer.calibration.digest(),
            workspace.evaluator(policy),
        )


def test_results_do_not_depend_on_what_is_kept(tmp_path):
    kept, drawn = found(tmp_path / "kept", Resources(workers=1)), found(tmp_path / "drawn", LITTLE)
    assert (kept[0], drawn[0]) == (True, False)
    assert kept[1] == drawn[1]


def test_data_that_change_later_are_refused_while_they_calibrate(tmp_path):
    data = Data()
    with opened(tmp_path / "run", data, LITTLE) as workspace:
        data.changes = data.turns + 1
        with pytest.raises(UserError, match=r"calibration\(\) gives other batches .*batch 11 is the first"):
            _ = workspace.fake_quantizer


def test_unseen_samples_are_four_times_those_of_the_search_at_most(tmp_path):
    with opened(tmp_path / "run", Data(), LITTLE, samples=40) as workspace:
        seen = []
        workspace._value = seen.append
        workspace._evaluator = lambda *_: None
        _ = workspace.unseen
        assert samples_in(workspace.judging) == 64, "two batches reach 40 samples"
    assert [samples_in(batches) for batches in seen] == [160], "seven reach 200"
