"""A budget on the loss: the cheapest engine that loses little enough, on a device with layers of known cost."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from calib.errors import UserError
from calib.formats.format import FP32
from deploy.files.loop import LoopFile
from deploy.files.search import LossFile
from deploy.stages.bundling import write_next_bundle
from deploy.stages.cheapest import check_decidable, verdicts_of
from deploy.stages.choosing import search, solve
from deploy.stages.scoring import static_ceilings
from smpq.problem.budget import Budget
from smpq.problem.costs import CostModel
from smpq.value.loss import Loss
from tests.commands import TINY, done, refused
from tests.deploy.board import FASTER, SLOWER, Board
from tests.smpq.problems import W8A8
from tests.tiny_task import Tiny, images, network


class HeldOut(Tiny):
    """Three hundred held-out samples, labelled with what the float network says but for every tenth."""

    def selection(self):
        inputs = torch.cat([images(seed).flatten(0, 1) for seed in range(10, 30)])
        with torch.no_grad():
            targets = network()(inputs).argmax(1)
        targets[::10] = (targets[::10] + 1) % 3
        return [(inputs[:160], targets[:160]), (inputs[160:], targets[160:])]


def held_out(data: Path | None, weights: Path | None) -> HeldOut:
    return HeldOut()


def test_the_fastest_engine_that_loses_little_enough(workspace):
    workspace = replace(workspace, task=HeldOut())
    generous, strict = (
        search(replace(workspace, device=Board(FASTER)), Budget.from_text(f"drop={limit}")) for limit in ("60", "0.001")
    )
    assert generous.outcome.met
    assert generous.outcome.observation.ratio == pytest.approx(0.6), "the head is slower as integers"
    assert {name for name, chosen in generous.policy.formats.items() if chosen == FP32} == {"head"}
    assert set(strict.policy.formats.values()) == {FP32}, (
        "no interval of 320 samples ends below a thousandth of a point"
    )
    record = workspace.run.read(LossFile)
    assert (record.policy, record.mean, record.data) == (strict.policy.key(), 0.0, "selection")
    assert workspace.run.read(LoopFile).searches[0].budget == "drop=60"


def test_nothing_is_measured_or_judged_twice_when_it_goes_on(workspace):
    workspace, budget = replace(workspace, task=HeldOut()), Budget.from_text("kl=0.5")
    first = Board(FASTER, gives_up_after=2)
    with pytest.raises(KeyboardInterrupt):
        search(replace(workspace, device=first), budget)
    second = Board(FASTER)
    solution = search(replace(workspace, device=second), budget)
    assert not set(first.asked) & set(second.asked)
    third = Board(FASTER)
    assert search(replace(workspace, device=third), budget).policy == solution.policy
    assert third.asked == []


def test_without_held_out_samples_the_calibration_decides_with_a_warning(workspace, monkeypatch):
    said = []
    monkeypatch.setattr(type(workspace.progress), "warn", lambda _, text: said.append(text))
    verdicts = verdicts_of(workspace, Budget.from_text("drop=0.01x").loss)
    assert verdicts.data == "calibration"
    assert verdicts.limit == pytest.approx(1.0), "a hundredth of 100 points: the labels are the network's own"
    assert "give the task a method selection()" in said[0]


def test_the_float_model_runs_once_on_the_held_out_samples(workspace, monkeypatch):
    class Counted(HeldOut):
        metric_name = "hits"
        loaded = judged = 0

        def selection(self):
            self.loaded += 1
            return super().selection()

        def metric(self, output, target):
            self.judged += 1
            return super().metric(output, target)

    task = Counted()
    workspace, budget = replace(workspace, task=task), Budget.from_text("drop=0.05x")
    verdicts_of(workspace, budget.loss)
    before = task.judged
    assert verdicts_of(workspace, budget.loss).limit == pytest.approx(4.5)
    check_decidable(workspace, Budget.from_text("drop=0.05"))
    assert (task.loaded, task.judged) == (1, before)


def test_a_share_of_no_bit_operations_is_refused():
    nothing = SimpleNamespace(costs={"bops": CostModel("bops", 0.0, {}, 0.0), "size": CostModel("size", 0.0, {}, 8.0)})
    with pytest.raises(UserError, match=r"bops=0.5x is a share of the float model's bops, which is 0"):
        static_ceilings(nothing, Budget.from_text("size=0.5x,bops=0.5x"))
    (ceiling,) = static_ceilings(nothing, Budget.from_text("size=0.5x,latency=1ms"))
    assert ceiling.limit == 4.0


def test_few_samples_show_no_point(workspace):
    verdicts = verdicts_of(replace(workspace, task=HeldOut()), Budget.from_text("drop=0.5").loss)
    finest = workspace.space.uniform(workspace.space.reference).with_format("head", W8A8)
    assert abs(verdicts.of(finest).mean) < 2.0
    assert not verdicts.allows(finest), "320 samples with hardly a change"
    float_model = workspace.space.uniform(workspace.space.reference)
    assert verdicts.of(float_model) == Loss(0.0, 0.0, 320), "it loses nothing, however few samples there are"
    assert verdicts.allows(float_model)


def test_a_slower_engine_is_an_answer_where_the_float_model_is_too_large(workspace):
    slow, budget = replace(workspace, device=Board(SLOWER)), Budget.from_text("kl=5,size=0.5x")
    solution = search(slow, budget)
    assert solution.outcome.met
    assert solution.outcome.observation.ratio > 1
    assert workspace.costs["size"].total(solution.policy) <= 0.5 * workspace.costs["size"].float_total
    assert search(slow, Budget.from_text("kl=5")).policy == workspace.space.uniform(workspace.space.reference)


def test_the_run_says_how_many_samples_would_show_that_a_faster_engine_loses_little(workspace, monkeypatch):
    said = []
    monkeypatch.setattr(type(workspace.progress), "warn", lambda _, text: said.append(text))
    workspace = replace(workspace, task=HeldOut(), device=Board(FASTER))
    kept = search(workspace, Budget.from_text("drop=1"))
    assert set(kept.policy.formats.values()) == {FP32}
    (sentence,) = said
    assert "cheaper plans lose less than 1 points in the mean of 320 selection samples, which are too few" in sentence
    needed = int(re.search(r"about (\d+) would", sentence)[1])
    assert 320 < needed < 20_000


def test_a_share_of_nothing_is_refused(workspace):
    class Wrong(HeldOut):
        def metric(self, output, target):
            return super().metric(output, target) * 0

    with pytest.raises(UserError, match="is a share of the float model's accuracy, which is 0 points"):
        verdicts_of(replace(workspace, task=Wrong()), Budget.from_text("drop=0.01x").loss)


def test_before_anything_is_measured_the_smallest_is_chosen(workspace):
    workspace = replace(workspace, task=HeldOut())
    solution = solve(workspace, Budget.from_text("drop=60"))
    sizes = workspace.costs["size"]
    assert sizes.total(solution.policy) == min(
        sizes.total(workspace.space.uniform(chosen)) for chosen in workspace.space.formats["head"]
    )


def test_the_whole_job_says_what_is_lost(tmp_path):
    task = ("--task", f"{__name__}:held_out", *TINY[2:])
    run = tmp_path / "run"
    written = done(
        "run", *task, "--target", "simulate", "--effort", "fast", "--formats", "w8a8,w4a8,fp32", "--budget",
        "drop=30,size=0.9x", "--out", run, "--quiet",
    )  # fmt: skip
    assert (run / "loss.json").exists()
    assert '"cost": "drop"' in (run / "report.json").read_text()
    assert "smallest" not in written.out


def test_a_bundle_is_for_a_latency(workspace, tmp_path):
    with pytest.raises(UserError, match="drop=1 needs a device that answers"):
        write_next_bundle(workspace, "drop=1,latency=0.9x", tmp_path / "bundle")


def test_a_method_without_a_search_is_refused(tmp_path):
    message = refused("run", *TINY, "--method", "uniform", "--budget", "drop=1", "--out", tmp_path / "run")
    assert "--method uniform chooses by its scores alone" in message
