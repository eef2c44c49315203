"""What every method keeps to: a policy within the budget, by seed, and one message for what a task lacks."""

from __future__ import annotations

import pytest
import torch

from calib.errors import UserError
from deploy.run.settings import Settings
from deploy.stages.choosing import score_for, search
from deploy.stages.finetuning import tuned
from deploy.stages.run_all import open_run
from deploy.stages.scoring import check_method, score
from deploy.stages.training import train
from deploy.terminal.progress import Progress
from smpq.methods import DEFAULT_METHOD, METHODS, Need, method_from_name
from smpq.problem.budget import Budget
from smpq.training.settings import FineTuneSettings
from tests import tiny_task
from tests.commands import assert_matches, refused

BUDGET = Budget.from_text("avg_bits=6")
TINY = Settings(
    "tests.tiny_task:task", target="simulate", formats="w4a8,w8a8,fp32", rounding="nearest", samples=16, evaluations=9
)
TRAINABLE = "tests.smpq.supernets:Task"
SCORING = [name for name, method in METHODS.items() if not method.trains]
TRAINING = [name for name, method in METHODS.items() if method.trains]


def settings_for(name: str) -> Settings:
    trains = Need.TRAINING_DATA in METHODS[name].needs
    return Settings(**{**_fields(TINY), "task": TRAINABLE}) if trains else TINY


def _fields(settings: Settings) -> dict:
    return {field: getattr(settings, field) for field in Settings.__struct_fields__}


@pytest.fixture
def opened(tmp_path, monkeypatch):
    from smpq.supernet import training

    short = training.SupernetSettings
    monkeypatch.setattr(training, "SupernetSettings", lambda: short(epochs=2, steps=2, walks=2, samples=32))
    number = iter(range(99))

    def make(name: str, **others):
        return open_run(
            tmp_path / f"run{next(number)}", Progress(), Settings(**{**_fields(settings_for(name)), **others})
        )

    return make


@pytest.mark.parametrize("name", SCORING)
def test_a_policy_within_the_budget_and_the_same_one_again(name, opened):
    found = []
    for _ in range(2):
        with opened(name) as workspace:
            solution = search(workspace, BUDGET, score_for(workspace, BUDGET, name))
            assert workspace.costs["avg_bits"].total(solution.policy) <= 6
            scores = score(workspace)
            assert scores.method == name
            assert score(workspace, method=name) == scores, "what is read back is what was written"
            assert scores.entries.keys() == workspace.space.formats.keys()
            assert all(row.keys() == set(workspace.space.formats[group]) for group, row in scores.entries.items())
            found.append(
                (
                    solution.policy,
                    {g: {f: (s.value, s.standard_error) for f, s in r.items()} for g, r in scores.entries.items()},
                )
            )
    assert found[0] == found[1]


@pytest.mark.parametrize("name", TRAINING)
def test_a_trained_policy_within_the_budget_and_the_same_one_again(name, opened):
    found = []
    for _ in range(2):
        with opened(name) as workspace:
            how = FineTuneSettings(epochs=2)
            policy = train(workspace, BUDGET, name, how)
            assert workspace.costs["avg_bits"].total(policy) <= 6
            weights = tuned(workspace, policy).weights
            assert (weights.policy, weights.fingerprint) == (policy.key(), workspace.fingerprint)
            assert weights.settings["method"] == name
            assert train(workspace, BUDGET, name, how) == policy, "what is read back is what was written"
            found.append((policy, weights))
    assert found[0][0] == found[1][0]
    one, other = (weights for _, weights in found)
    assert all(torch.equal(tensor, other.parameters[name]) for name, tensor in one.parameters.items())
    assert all(torch.equal(weight.values, other.weights[path].values) for path, weight in one.weights.items())


@pytest.mark.parametrize("name", TRAINING)
def test_a_method_that_trains_has_no_scores(name, tmp_path):
    message = refused("score", "--task", TRAINABLE, "--method", name, "--target", "simulate", "--out", tmp_path / "run")
    assert_matches(f"--method {name} trains a policy with its weights for one budget, and has no scores", message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_declares(name):
    method = METHODS[name]
    assert method.name == name
    assert method.summary.endswith(".")
    assert method.paper
    assert method.cost
    if method.latency:
        check_method(name, Budget.from_text("latency=0.8x"))
    else:
        why = "trains for limits that are known before" if method.trains else "chooses by its scores alone"
        with pytest.raises(UserError, match=f"--method {name} {why}, without engines.* one of {DEFAULT_METHOD}"):
            check_method(name, Budget.from_text("latency=0.8x"))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if Need.TRAINING_DATA in method.needs])
def test_no_training_data(name, tmp_path):
    arguments = ("--task", "tests.tiny_task:task", "--budget", "avg_bits=6", "--method", name)
    untuned = () if METHODS[name].trains else ("--finetune", "0")
    assert_matches(
        "task tiny has no training data",
        refused("run", *arguments, *untuned, "--target", "simulate", "--out", tmp_path / "run"),
    )
    assert not (tmp_path / "run" / "scores.json").exists()


class Unlabelled(tiny_task.Tiny):
    """As a task with images alone is written."""

    def calibration(self):
        return [(inputs, None) for inputs, _ in super().calibration()]

    def training(self, epoch):
        return [(inputs, torch.zeros(len(inputs))) for inputs in tiny_task.images(epoch + 5)]

    def metric(self, output, target):
        return torch.zeros(len(output)) if target is None else super().metric(output, target)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if Need.LABELS in method.needs])
def test_no_labels(name, tmp_path):
    arguments = ("--task", "tests.smpq.methods.test_every_method:Unlabelled", "--method", name)
    message = refused("score", *arguments, "--target", "simulate", "--out", tmp_path / "run")
    assert_matches(rf"task tiny has no labels .* and the method {name} needs them: .* one of {DEFAULT_METHOD}", message)


def test_an_unknown_name_lists_the_choices(tmp_path):
    for command in (("run", "--budget", "size=0.5x"), ("score",)):
        message = refused(*command, "--task", "tests.tiny_task:task", "--method", "hawk", "--out", tmp_path / "run")
        assert_matches(f"--method must be one of {', '.join(METHODS)}, not 'hawk'", message)
    assert not (tmp_path / "run").exists()


def test_scores_of_another_method_are_not_taken(opened):
    with opened("random") as workspace:
        score(workspace, method="random")
        with pytest.raises(UserError, match="is of method random, now uniform is asked for"):
            score_for(workspace, BUDGET, "uniform")


def test_the_default_is_registered():
    assert method_from_name(DEFAULT_METHOD).needs == ()
