"""What tells policies apart without labels: it has to see that outputs differ."""

import json

import torch
from torch import nn

from tests.commands import assert_matches, done, refused
from tests.tiny_task import Tiny

SCORED = ("--target", "simulate", "--formats", "w2a8,w4a8,fp32", "--effort", "fast", "--samples", "8", "--quiet")


class OneChannel(Tiny):
    """A network that gives one number a sample, of which softmax says nothing."""

    def model(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 1)).eval()

    def metric(self, output, target):
        return -(output[:, 0] - target).abs()

    def loss(self, output, target):
        return (output[:, 0] - target) ** 2


class Blind(Tiny):
    """Whoever wrote it compared shapes."""

    def divergence(self, output, float_output):
        return torch.zeros(len(output))


class Numbers(Tiny):
    """Three coordinates a sample, with the targets beside them."""

    def calibration(self):
        return [(inputs, inputs.flatten(1)[:, :3]) for inputs, _ in super().calibration()]

    evaluation = calibration

    def metric(self, output, target):
        return -self.loss(output, target)

    def loss(self, output, target):
        return ((output - target) ** 2).mean(1)


class Soft(Numbers):
    """Probabilities of three classes."""

    def calibration(self):
        return [(inputs, target.softmax(1)) for inputs, target in super().calibration()]

    evaluation = calibration


def test_numbers_that_are_taken_for_classes_are_told(tmp_path):
    def told(name, *words):
        task = ("--task", f"tests.deploy.run.test_divergence:{name}", *SCORED[:-1], *words)
        said = done("score", *task, "--out", tmp_path / f"{name}{len(words)}").err
        return "the targets are numbers" in " ".join(said.split())

    assert told("Numbers")
    assert not told("Soft")
    assert not told("Numbers", "--value", "loss")


def test_policies_of_a_network_with_one_output_differ(tmp_path):
    done("score", "--task", "tests.deploy.run.test_divergence:OneChannel", *SCORED, "--out", tmp_path / "run")
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["scores"]
    values = [score["value"] for row in scores.values() for score in row.values()]
    assert min(values) < 0, "less than the float network has"
    assert len(set(values)) > 1


def test_a_divergence_that_sees_nothing_is_refused(tmp_path):
    task = ("--task", "tests.deploy.run.test_divergence:Blind")
    assert_matches(
        "divergence of outputs that differ is 0", refused("score", *task, *SCORED, "--out", tmp_path / "run")
    )
    done("score", *task, *SCORED, "--value", "loss", "--out", tmp_path / "other")


def test_one_output_has_no_top_class(tmp_path):
    task = ("--task", "tests.deploy.run.test_divergence:OneChannel", *SCORED)
    done("run", *task, "--budget", "size=0.4x", "--out", tmp_path / "run")
    stages = json.loads((tmp_path / "run" / "verify.json").read_text())["stages"]
    assert stages["engine"]["mean"] is not None
    assert {stage["agreement"] for stage in stages.values()} == {None}


class Alone(Tiny):
    """Batches of one sample, as a loader makes them that nobody told otherwise."""

    def calibration(self):
        return [(row[None], label[None]) for batch in super().calibration() for row, label in zip(*batch, strict=True)]

    evaluation = calibration


def test_batches_of_one_sample_tell_policies_apart(tmp_path):
    done("score", "--task", "tests.deploy.run.test_divergence:Alone", *SCORED, "--out", tmp_path / "run")


class Beside(Tiny):
    """Samples are on the second axis of attention, as nobody expects."""

    def model(self):
        return nn.Sequential(super().model(), nn.Unflatten(1, (1, 3)), Attention()).eval()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(3, 1)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0][:, 0]


def test_a_sample_that_depends_on_those_beside_it_is_told(tmp_path):
    for name, told in (("Beside", True), ("OneChannel", False)):
        task = ("--task", f"tests.deploy.run.test_divergence:{name}", *SCORED[:-1])
        said = " ".join(done("score", *task, "--out", tmp_path / name).err.split())
        assert ("depends on the samples beside it" in said) is told
