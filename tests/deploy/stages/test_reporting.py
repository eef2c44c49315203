"""What the report says of a plan besides what its files hold."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from calib.formats.format import Format
from calib.task import TrainableTask
from deploy.files.report import ReportFile
from deploy.run.directory import Run
from deploy.run.record import RunFile
from deploy.stages.choosing import search
from deploy.stages.recorded import Recorded
from deploy.stages.reporting import _not_on_orin, _speed_warning
from smpq.files import Interval
from smpq.problem.budget import Budget
from smpq.problem.policy import Group, Policy, Space
from tests.commands import done
from tests.smpq.problems import unit
from tests.tiny_task import Net, Tiny, network

SLOW = "the engine is slower than the float engine (1.020x)"


def test_formats_without_a_kernel_on_orin_are_those_of_its_table():
    formats = {"a": "w8a8", "b": "w4a8", "c": "w4a8", "d": "fp16"}
    groups = tuple(Group(name, (unit(name),)) for name in formats)
    chosen = {name: Format.from_text(text) for name, text in formats.items()}
    space = Space(groups, {name: (found,) for name, found in chosen.items()}, Format.from_text("fp16"))
    read = SimpleNamespace(policy=Policy(chosen), space=space)
    assert _not_on_orin(read) == (f"w4a8 on {unit('b').operator}",), "which a table of bits alone would take for native"


def read_with(interval: tuple[float, float], *, chosen: str = "w8a8", budget: str | None = "latency=0.9x"):
    """What the files of a run say of an engine whose float engine is FP16."""
    reference = Format.from_text("fp16")
    return SimpleNamespace(
        latency=SimpleNamespace(ratio=sum(interval) / 2, interval=Interval(*interval)),
        policy=Policy({"a": reference, "b": Format.from_text(chosen)}),
        space=SimpleNamespace(reference=reference),
        target=SimpleNamespace(reference=reference),
        budget=None if budget is None else Budget.from_text(budget),
    )


@pytest.mark.parametrize(
    ("told", "warning"),
    [
        (read_with((0.8, 0.9)), None),
        (read_with((0.97, 1.01)), "no difference to the time of the float engine can be shown (0.990x)"),
        (read_with((1.01, 1.03)), f"{SLOW}: deploy fp16 instead"),
        (read_with((1.01, 1.03), budget="drop=0.5"), f"{SLOW}: deploy fp16 instead"),
        (read_with((1.01, 1.03), budget=None), f"{SLOW}: deploy fp16 instead"),
        (read_with((1.01, 1.03), budget="size=0.3x"), SLOW),
        (read_with((1.01, 1.03), chosen="fp16"), None),
    ],
)
def test_the_warning_agrees_with_the_answer(told, warning):
    assert list(_speed_warning(told)) == ([] if warning is None else [warning])


class Large(Tiny):
    """Between its layers numbers are larger than half precision holds."""

    def model(self):
        class Scaled(Net):
            def forward(self, x):
                return super().forward(x * 1e6 * 1e-6)

        return network(Scaled).eval()


def test_what_stays_in_float32_stands_in_the_report(tmp_path):
    run, task = tmp_path / "run", f"{__name__}:Large"
    done(
        "score", "--task", task, "--target", "tensorrt-rtx", "--effort", "fast", "--samples", "8", "--evaluations", "8",
        "--formats", "w8a8,fp16", "--out", run,
    )  # fmt: skip
    done("solve", run, "--budget", "size=0.9x")
    done("report", run)
    (note,) = Run(run).read(ReportFile).notes
    assert note.startswith("kept in float32, since half precision does not hold the values: mul")
    assert f"K{note[1:]}." in (run / "report.html").read_text(encoding="utf-8")


def test_without_training_data_weights_are_reconstructed_where_some_are_integers(workspace):
    assert not isinstance(workspace.task, TrainableTask)
    assert workspace.run.read(RunFile).trainable is False
    for budget, tuning in (("size=0.5x", "reconstruct"), ("size=1x", None)):
        policy = search(workspace, Budget.from_text(budget)).policy
        assert Recorded(workspace.run).tuning == tuning, str(policy)


def test_a_format_that_cannot_be_learned_leaves_no_weights_to_tune(workspace):
    read = Recorded(workspace.run)
    read.__dict__["space"] = SimpleNamespace(offered=(Format.from_text("fp8"),))
    assert read.tuning is None
