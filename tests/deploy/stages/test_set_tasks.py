"""Verification, curve and budgets of a task whose metric is a figure of all samples together: AUC of class 0."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score

from calib.errors import UserError
from calib.task import SetTask
from deploy.files.search import LossFile
from deploy.files.verification import STAGES, VerifyFile
from deploy.run.directory import Run
from deploy.stages.cheapest import check_decidable, verdicts_of
from deploy.stages.choosing import solve
from deploy.stages.curving import draw_curve
from deploy.stages.policies import read_policy
from deploy.stages.run_all import open_run
from deploy.stages.supernet import train_supernet
from deploy.stages.verifying import verify
from deploy.terminal.progress import Progress
from smpq.problem.budget import Budget
from smpq.supernet.settings import GameSettings, SupernetSettings
from tests.commands import TINY, copy_of, done, refused
from tests.deploy.board import FASTER, Board
from tests.smpq.problems import W8A8
from tests.smpq.ranking import auc
from tests.tiny_task import Tiny, images, network

FAST = ("--target", "simulate", "--effort", "fast", "--formats", "w8a8,w4a8,fp32")


def held_out(first, last):
    """Labelled with whether the float network leans to class 0, but for every tenth."""
    inputs = torch.cat([images(seed).flatten(0, 1) for seed in range(first, last)])
    with torch.no_grad():
        targets = network()(inputs).softmax(1)[:, 0] > 0.4
    targets[::10] = ~targets[::10]
    return [(inputs[:30], targets[:30]), (inputs[30:], targets[30:])]


class Ranked(Tiny):
    metric_name = "AUC"
    metric_point = 0.01
    metric = None

    def calibration(self):
        return [(inputs, (target == 0).long()) for inputs, target in super().calibration()]

    def selection(self):
        return held_out(10, 15)

    def evaluation(self):
        return held_out(20, 24)

    def records(self, output, target):
        return list(zip(target.tolist(), output.softmax(1)[:, 0].tolist(), strict=True))

    def metric_of(self, records):
        return auc(records)


class Patients(Ranked):
    """Of whom there are so many."""

    count = 3

    def groups(self, target):
        return torch.arange(len(target)) % self.count


def ranked(data, weights):
    return Ranked()


def patients(data, weights):
    return Patients()


def exact(runner):
    outputs = [(runner(inputs).softmax(1)[:, 0], target) for inputs, target in Ranked().evaluation()]
    scores, labels = (torch.cat(column) for column in zip(*outputs, strict=True))
    return roc_auc_score(labels.numpy(), scores.detach().numpy())


@pytest.fixture
def opened(good_run, tmp_path):
    run = open_run(copy_of(good_run, tmp_path / "run"), Progress())
    return replace(run, task=Ranked())


def test_every_stage_has_the_users_figure_of_all_samples(opened):
    assert isinstance(opened.task, SetTask)
    record = verify(opened, read_policy(opened), "policy")
    assert record.contradiction() is None
    assert tuple(record.stages) == STAGES
    assert (record.metric, record.samples) == ("AUC", 64)
    assert record.stages["eager"].mean == pytest.approx(exact(network()))
    width = {name: row.interval.high - row.interval.low for name, row in record.stages.items()}
    assert record.stages["eager"].mean in record.stages["eager"].interval
    assert 0.02 < width["eager"] < 0.7
    assert record.stages["float"].change == pytest.approx(0.0, abs=1e-6)
    assert record.whole.interval.high - record.whole.interval.low < 0.5 * width["eager"], "it is paired"
    assert record.lost_at is None


def test_a_loss_is_found_where_it_is(opened):
    with torch.no_grad():
        opened.original.head.weight.neg_()
    record = verify(opened, read_policy(opened), "policy")
    assert record.lost_at == "float"


def test_few_groups_are_warned_of(opened, monkeypatch):
    said = []
    monkeypatch.setattr(type(opened.progress), "warn", lambda _, text: said.append(text))
    verify(replace(opened, task=Patients()), read_policy(opened), "policy")
    assert said == ["the interval of AUC cannot be told from 3 groups: give data with 10 or more"]


def test_a_figure_that_the_first_samples_do_not_have_takes_more_of_them(opened, monkeypatch):
    class Sorted(Ranked):
        def evaluation(self):
            batches = super().evaluation()
            inputs, targets = (torch.cat(column) for column in zip(*batches, strict=True))
            order = targets.long().argsort()
            parts = range(0, 64, 8)
            return [(inputs[order[a : a + 8]], targets[order[a : a + 8]]) for a in parts]

    monkeypatch.setattr("deploy.stages.verifying._FIRST_SAMPLES", 8)
    record = verify(replace(opened, task=Sorted()), read_policy(opened), "policy")
    assert record.contradiction() is None
    assert record.stages["onnx"].samples > 8, "the first batch has one class"


def test_the_curve_has_the_users_figure(workspace):
    record = draw_curve(replace(workspace, task=Ranked(), device=Board(FASTER)), 2)
    judged = {point.kind: point.judged for point in record.points}
    assert record.samples == 64
    assert judged["float"].accuracy == pytest.approx(exact(network()))
    assert judged["float"].change == 0.0
    for point in judged.values():
        assert point.change == pytest.approx(point.accuracy - judged["float"].accuracy)
        assert point.change in point.change_interval


def test_a_budget_on_the_fall_of_the_figure(workspace):
    workspace = replace(workspace, task=Ranked())
    smallest = solve(workspace, Budget.from_text("drop=60")).policy
    assert smallest["head"] == W8A8
    verdicts = verdicts_of(workspace, Budget.from_text("drop=0.5").loss)
    lost = verdicts.of(smallest)
    assert (lost.samples, lost.complete) == (80, True)
    assert lost.interval[0] < 0.5 < lost.interval[1], "80 samples show no half point"
    assert verdicts_of(workspace, Budget.from_text("drop=0.5").loss).of(smallest) == lost, "from the journal"
    assert 40 < verdicts.loss.float_metric() < 100


@pytest.mark.parametrize("budget", ["drop=1", "drop=0.01x"])
def test_few_groups_decide_about_no_fall(workspace, budget):
    with pytest.raises(
        UserError, match=r"cannot be decided on the selection batches: .* from 3 groups: .*; or give a budget on kl"
    ):
        check_decidable(replace(workspace, task=Patients()), Budget.from_text(budget))
    with pytest.raises(UserError, match="cannot be decided"):
        solve(replace(workspace, task=Patients()), Budget.from_text(budget))
    check_decidable(replace(workspace, task=Patients()), Budget.from_text("kl=0.1"))
    check_decidable(replace(workspace, task=Ranked()), Budget.from_text(budget))


def test_the_whole_job(tmp_path):
    run = tmp_path / "run"
    task = ("--task", f"{__name__}:ranked", *TINY[2:])
    done("run", *task, *FAST, "--budget", "drop=30,size=0.9x", "--out", run, "--quiet")
    found = Run(run)
    assert found.read(VerifyFile).contradiction() is None
    assert found.read(LossFile).unit == "points"
    assert "AUC over 64 samples" in (run / "report.html").read_text()


def test_what_needs_a_value_of_each_sample_is_refused(tmp_path):
    task = ("--task", f"{__name__}:ranked", *TINY[2:])
    message = refused("score", *task, "--value", "metric", "--out", tmp_path / "run")
    assert "the value metric needs a value of each sample, and AUC of the task tiny is a figure" in message
    assert message.endswith("use kl or loss")
    assert not (tmp_path / "run").exists()
    message = refused(
        "run", "--task", f"{__name__}:patients", *TINY[2:], *FAST, "--budget", "drop=1", "--out", tmp_path / "run"
    )
    assert "cannot be told from 3 groups" in message


@pytest.mark.parametrize(("values", "gamma"), [(("metric",), 0.0), (("loss",), 0.5)])
def test_a_supernet_wants_another_contribution(workspace, values, gamma):
    class Trained(Ranked):
        def training(self, epoch):
            return self.calibration()

    settings = SupernetSettings(game=GameSettings(values), gamma=gamma)
    with pytest.raises(UserError, match="use --contribution kl or loss, with --gamma 0"):
        train_supernet(replace(workspace, task=Trained()), settings)
