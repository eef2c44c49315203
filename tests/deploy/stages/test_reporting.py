"""What the report says of a plan besides what its files hold."""

from __future__ import annotations

from types import SimpleNamespace

from calib.formats.format import Format
from calib.task import TrainableTask
from deploy.run.record import RunFile
from deploy.stages import search
from deploy.stages.recorded import Recorded
from deploy.stages.reporting import _not_on_orin
from smpq.problem.budget import Budget
from smpq.problem.policy import Group, Policy, Space
from tests.smpq.problems import unit


def test_formats_without_a_kernel_on_orin_are_those_of_its_table():
    formats = {"a": "w8a8", "b": "w4a8", "c": "w4a8", "d": "fp16"}
    groups = tuple(Group(name, (unit(name),)) for name in formats)
    chosen = {name: Format.from_text(text) for name, text in formats.items()}
    space = Space(groups, {name: (found,) for name, found in chosen.items()}, Format.from_text("fp16"))
    read = SimpleNamespace(policy=Policy(chosen), space=space)
    assert _not_on_orin(read) == (f"w4a8 on {unit('b').operator}",), "which a table of bits alone would take for native"


def test_without_training_data_weights_are_reconstructed_where_some_are_integers(workspace):
    assert not isinstance(workspace.task, TrainableTask)
    assert workspace.run.read(RunFile).trainable is False
    for budget, tuning in (("size=0.5x", "reconstruct"), ("size=1x", None)):
        policy = search(workspace, Budget.from_text(budget)).policy
        assert Recorded(workspace.run).tuning == tuning, str(policy)


def test_a_format_that_cannot_be_learned_leaves_no_weights_to_tune(workspace):
    read = Recorded(workspace.run)
    read.__dict__["space"] = SimpleNamespace(formats={"head": (Format.from_text("fp8"),)})
    assert read.tuning is None
