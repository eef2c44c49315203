"""The curve of a run: what is measured, named, judged and taken, on a device with layers of known cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from calib.errors import UserError
from calib.formats.format import FP32
from deploy.files.curve import CurveFile
from deploy.files.search import BudgetFile
from deploy.run.settings import Settings
from deploy.stages import judging
from deploy.stages.choosing import search, solve
from deploy.stages.curving import draw_curve
from deploy.stages.policies import read_policy
from deploy.stages.reporting import write_report
from deploy.stages.run_all import open_run
from deploy.stages.taking import take_point
from deploy.terminal.progress import Progress
from smpq.problem.budget import Budget
from tests.deploy.board import FASTER, Board
from tests.tiny_task import Tiny


def on(workspace, **limits):
    """The run with a board in place of this machine."""
    return replace(workspace, device=Board(FASTER, **limits))


def kinds(record: CurveFile) -> dict[str, str]:
    return {point.name: point.kind for point in record.points}


def test_engines_across_the_whole_range(workspace):
    record = draw_curve(on(workspace))
    assert record == workspace.run.read(CurveFile)
    assert (record.cost, record.machine, record.float_cost, record.samples) == ("latency", "a board", 2.0, 16)
    assert [point.name for point in record.points] == [f"P{number + 1}" for number in range(len(record.points))]
    assert sorted(kinds(record).values()).count("float") == 1
    assert {"uniform", "found", "quantize_static"} <= set(kinds(record).values())
    fastest = record.points[0]
    assert (fastest.ratio, fastest.ms) == (pytest.approx(0.6), pytest.approx(1.2)), "the head is slower as integers"
    assert fastest.policy.policy["head"] == "fp32"
    assert all(point.judged.measured_on == "engine" for point in record.points)
    (uniform,) = [point for point in record.points if point.kind == "uniform"]
    assert uniform.ratio == pytest.approx(0.65)
    assert uniform.dominated, "an engine of which the head is float is faster and as accurate"


def test_nothing_is_measured_twice_when_it_goes_on(workspace):
    first = on(workspace, gives_up_after=3)
    with pytest.raises(KeyboardInterrupt):
        draw_curve(first)
    second = on(workspace)
    record = draw_curve(second)
    own = first.device.asked[0]
    assert set(first.device.asked) & set(second.device.asked) <= {own}, "which a device with a memory tells from that"
    third = on(workspace)
    assert draw_curve(third) == record
    assert third.device.asked == []


def test_engines_that_the_run_has_measured_count(workspace):
    board = on(workspace)
    solution = search(board, Budget.from_text("latency=0.75x"))
    measured = len(workspace.observations.engines("a board"))
    record = draw_curve(on(workspace), measured + 1)
    assert len(record.points) <= measured + 2
    assert solution.policy.to_file(workspace.space.groups) in [point.policy for point in record.points]


def test_a_point_keeps_its_name_when_there_are_more(workspace):
    few = draw_curve(on(workspace), 2)
    assert few.stop_reason == "2 engines are measured"
    more = draw_curve(on(workspace), 16)
    assert len(more.points) > len(few.points)
    kept = {point.name: point.policy for point in few.points}
    assert kept == {point.name: point.policy for point in more.points if point.name in kept}
    assert {point.name for point in more.points} == {f"P{number + 1}" for number in range(len(more.points))}


def test_accuracies_are_worked_out_once(workspace, monkeypatch):
    judged = []
    judge = judging.Judge.of_policy

    def stops(self, policy, what):
        if len(judged) == 2:
            raise KeyboardInterrupt
        judged.append(what)
        return judge(self, policy, what)

    monkeypatch.setattr(judging.Judge, "of_policy", stops)
    with pytest.raises(KeyboardInterrupt):
        draw_curve(on(workspace))
    begun = workspace.run.read(CurveFile)
    assert sum(point.judged is not None for point in begun.points) >= 2
    assert not begun.complete
    monkeypatch.setattr(judging.Judge, "of_policy", lambda *given: judged.append(given[2]) or judge(*given))
    record = draw_curve(on(workspace))
    assert record.complete
    assert sorted(judged) == sorted(set(judged))
    assert [point.name for point in record.points] == [point.name for point in begun.points]


def test_other_evaluation_data_judge_all_points_anew(workspace):
    class Others(Tiny):
        def evaluation(self):
            return [(inputs, (target + 1) % 3) for inputs, target in super().evaluation()]

    first = draw_curve(on(workspace), 4)
    second = draw_curve(replace(on(workspace), task=Others()), 6)
    kept = {point.name: point.judged.accuracy for point in first.points}
    assert set(kept) < {point.name for point in second.points}
    alone = draw_curve(replace(on(workspace), task=Others()), 6)
    assert second.points == alone.points
    assert all(point.judged.accuracy != kept[point.name] for point in second.points if point.name in kept)


def test_an_engine_that_gives_no_numbers_is_left_out_with_a_warning(workspace, monkeypatch):
    said = []
    monkeypatch.setattr(type(workspace.progress), "warn", lambda _, text: said.append(text))
    judge = judging.Judge.of_policy

    def fails(self, policy, what):
        if policy["head"] != FP32:
            raise UserError("the output of stage engine holds NaN")
        return judge(self, policy, what)

    monkeypatch.setattr(judging.Judge, "of_policy", fails)
    record = draw_curve(on(workspace))
    assert {point.policy.policy["head"] for point in record.points if point.policy is not None} == {"fp32"}
    assert "is left out: the output of stage engine holds NaN" in said[0]


def test_what_is_wrong_with_the_float_model_is_told(workspace):
    class Wrong(Tiny):
        def metric(self, output, target):
            raise KeyError("top1")

    with pytest.raises(UserError, match="KeyError"):
        draw_curve(replace(on(workspace), task=Wrong()), 2)
    assert not workspace.run.has("curve.json")


def test_another_machine_has_another_curve(workspace):
    draw_curve(on(workspace), 3)
    other = on(workspace)
    other.device.describe = lambda: "another board"
    assert draw_curve(other, 3).machine == "another board"
    assert other.device.asked


def test_where_nothing_can_be_timed_size_stands_for_latency(tmp_path):
    settings = Settings(
        "tests.tiny_task:task", target="simulate", formats="w8a8,w4a8,w2a8,fp32", samples=16, evaluations=20
    )
    with open_run(tmp_path / "run", Progress(Console(quiet=True)), settings) as workspace:
        record = draw_curve(workspace, 6)
        again = draw_curve(workspace, 6)
        finer = draw_curve(workspace, 8)
    assert (record.cost, record.machine) == ("size", None)
    assert record.not_timed == "simulate has no engine to time"
    assert len(record.points) == 7
    assert sorted(kinds(record).values()).count("uniform") == 3
    assert {point.judged.measured_on for point in record.points} == {"fake_quant"}
    assert again == record
    assert len(finer.points) == 9
    assert kinds(record).items() <= kinds(finer).items()


def test_a_float_engine_in_fp16_is_half_of_the_fp32_model(tmp_path):
    settings = Settings("tests.tiny_task:task", target="tensorrt-rtx", samples=16, evaluations=20)
    with open_run(tmp_path / "run", Progress(Console(quiet=True)), settings) as workspace:
        record = draw_curve(workspace, 3)
        whole = workspace.costs["size"].float_total
    assert (record.cost, record.float_cost) == ("size", whole)
    (base,) = [point for point in record.points if point.kind == "float"]
    assert base.policy.policy["head"] == "fp16"
    assert base.ratio == pytest.approx(0.5, abs=0.02), "a budget of size=0.5x is just met by it"
    assert all(point.ratio == pytest.approx(point.size_bytes / whole) for point in record.points)


def test_a_point_becomes_the_policy(workspace):
    solve(workspace, Budget.from_text("size=0.9x"))
    record = draw_curve(on(workspace))
    point = record.points[0]
    stability = workspace.run.file("stability.json").read_bytes()
    assert take_point(workspace.run.path, "p1") == point
    assert read_policy(workspace).to_file(workspace.space.groups) == point.policy
    assert workspace.run.find(BudgetFile) is None, "the budget of the policy before"
    assert workspace.run.file("stability.json").read_bytes() == stability
    report = write_report(workspace.run, {})
    assert (report.curve, report.stability, report.limits) == (record, None, ())


def test_what_cannot_be_taken_is_said(workspace):
    with pytest.raises(UserError, match=r"curve\.json is missing: make it with smpq curve"):
        take_point(workspace.run.path, "P1")
    record = draw_curve(on(workspace), 3)
    with pytest.raises(UserError, match=r"the curve has no point P99: it has P1, P2"):
        take_point(workspace.run.path, "P99")
    (own,) = [point for point in record.points if point.kind == "quantize_static"]
    with pytest.raises(UserError, match=f"{own.name} is what onnxruntime's quantize_static makes, not a policy"):
        take_point(workspace.run.path, own.name)
    assert not workspace.run.has("policy.json")


def test_a_curve_that_was_stopped_is_not_on_the_page(workspace, monkeypatch):
    def stops(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(judging.Judge, "of_policy", stops)
    with pytest.raises(KeyboardInterrupt):
        draw_curve(on(workspace), 3)
    take_point(workspace.run.path, "P1")
    assert write_report(workspace.run, {}).curve is None
