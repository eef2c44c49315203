"""The answers of a report: sentences that follow from its figures, and none that does not."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.files.report import ReportFile
from deploy.report.answer import Answer
from deploy.report.answers import answers
from tests.deploy.report.report_sample import LATENCY, RUN, VERIFICATION, layer, long, report, stage, unmeasured


def answer(content: ReportFile, index: int) -> Answer:
    return answers(content, RUN)[index]


def test_faster_with_ratio_interval_and_times() -> None:
    first, times, predicted = answer(report(), 0).sentences
    assert first == "Yes: it takes 0.642 of the float engine's time, 95 % interval 0.639 to 0.647."
    assert times == "1.88 ms against 2.93 ms at batch 1; thread CPU time, 15 rounds, both engines in turn."
    assert predicted == "Predicted was 0.639 (0.621 to 0.657) before it was built, from 7 other engines, which agrees."
    assert answer(report(), 0).verdict == "yes"


def test_a_prediction_says_what_it_was_made_from_and_whether_it_agrees() -> None:
    wrong = {**LATENCY, "predicted_interval": [0.5, 0.6], "predicted_ratio": 0.55, "predicted_from": 1}
    assert answer(report(latency=wrong), 0).sentences[-1].endswith("from 1 other engine, which does not agree.")
    following, step = answer(report(latency=wrong), 3).sentences
    assert following == "Next: `smpq measure runs/mine`."
    assert step.startswith("Predicted and measured latency do not agree")
    without = report(latency={**LATENCY, "predicted_ratio": None, "predicted_interval": None, "predicted_from": 0})
    assert len(answer(without, 0).sentences) == 2


def test_slower_names_kernels_and_warnings_and_says_not_to_deploy() -> None:
    content = long()
    assert answer(content, 0).sentences[0].startswith("No, it is slower: it takes 1.12 of")
    why = answer(content, 1).sentences
    assert why[0].startswith("In another kernel than planned: 4 layers, encoder.blocks.0.attention.projection_5, ")
    assert why[1] == "14 conversions between integers and floats remain in the graph."
    steps = answer(content, 3).sentences
    assert steps[0] == "Next: `smpq targets ort-cpu`."
    assert steps[1] == "latency ≤ 0.65x is not met, the nearest reached is 1.12x: offer other formats."
    assert steps[2].startswith("Do not deploy it for speed: keep the float engine (engine.float.onnx)")


def test_an_interval_around_one_is_no_answer() -> None:
    content = report(latency={**LATENCY, "ratio": 0.99, "interval": [0.97, 1.02]})
    assert answer(content, 0).verdict == "unknown"
    assert answer(content, 0).sentences[0].startswith("No difference can be shown: it takes 0.99 of")
    (why,) = answer(content, 1).sentences
    ratios = [step.measured for step in content.observations if step.measured is not None]
    fastest, slowest = f"the fastest takes {min(ratios):.3g} of", f"the slowest {max(ratios):.3g}."
    assert why.startswith(f"{len(ratios)} engines with other formats were measured: {fastest}")
    assert slowest in why
    assert "1 of 20 layers are floating point" in why
    alone = report(latency={**LATENCY, "ratio": 0.99, "interval": [0.97, 1.02]}, observations=[])
    assert answer(alone, 1).sentences[0].startswith("No other engine was measured.")
    assert any("keep the float engine" in step for step in answer(content, 3).sentences)


def test_without_measurement_the_reason_stands_in_its_place() -> None:
    content = unmeasured()
    assert (
        answer(content, 0).sentences[0] == "Not measured: timing a plan needs an NVIDIA GPU of its compute capability."
    )
    assert "301 kB against 1.09 MB" in answer(content, 0).sentences[1]
    accuracy = answer(content, 2)
    assert accuracy.verdict == "unknown"
    assert accuracy.sentences[0] == "Not verified on the engine; the ONNX graph is the last stage that ran."
    assert "The engine was not run: an NVIDIA GPU is needed." in accuracy.sentences


def test_accuracy_names_the_stage_that_lost_it() -> None:
    same = answer(report(), 2)
    assert same.verdict == "yes"
    assert "engine 88.41 % (87.81 to 89.01)" in same.sentences[1]
    assert "Step to quantised PyTorch: −0.08 (−0.18 to +0.02 points), 99.1 % of predictions the same." in same.sentences
    for lost_at, text in (
        ("engine", "No: the engine loses"),
        ("onnx", "No: the ONNX graph loses"),
        ("fake_quant", "quantising itself cost"),
    ):
        wrong = {**VERIFICATION["stages"][lost_at], "problem": "other values"}
        content = report(verification={**stages(**{lost_at: wrong}), "lost_at": lost_at, "explanation": "because"})
        assert text in answer(content, 2).sentences[0]
        assert answer(content, 2).sentences[-1] == "Because."
        assert not answer(content, 3).sentences[0].startswith("Nothing has to change")


def stages(**changes: Any) -> dict[str, Any]:
    return {**VERIFICATION, "stages": {**VERIFICATION["stages"], **changes}}


def test_a_loss_at_the_trace_is_a_bug_to_report() -> None:
    content = report(verification={**stages(float=stage(0.8, -0.085, 0.9)), "lost_at": "float"})
    found = answer(content, 2)
    assert found.verdict == "no"
    assert found.sentences[0].startswith(
        "No: float PyTorch, the traced model, loses accuracy that PyTorch as given has."
    )
    assert "please report it" in found.sentences[0]
    assert answer(content, 3).sentences == (
        "Report it, and use no engine of this run: its float model is not your module.",
    )


def test_the_first_stage_is_the_module_as_given_where_it_was_run() -> None:
    assert answer(report(), 2).sentences[0].startswith("Yes: no stage from PyTorch as given to the engine loses")
    assert (
        "10,000 samples: PyTorch as given 88.50 % (87.90 to 89.10); float PyTorch 88.50 %"
        in answer(report(), 2).sentences[1]
    )
    assert answer(report(), 2).sentences[2:4] == (
        "From PyTorch as given to the engine: −0.09 (−0.29 to +0.11 points), 99.08 % of predictions the same.",
        "Step to float PyTorch: +0.00 (−0.10 to +0.10 points), 100 % of predictions the same.",
    )
    without = {**VERIFICATION, "stages": {name: row for name, row in VERIFICATION["stages"].items() if name != "eager"}}
    without["stages"]["float"] = stage(0.885)
    found = answer(report(verification=without), 2)
    assert found.verdict == "yes"
    assert found.sentences[0].startswith("Yes: no stage from float PyTorch to the engine loses")
    assert "as given" not in " ".join(found.sentences)


def test_a_smaller_loss_behind_a_larger_one_is_not_left_out() -> None:
    changes = {"fake_quant": stage(0.80, -0.085, 0.9), "engine": stage(0.78, -0.02, 0.95)}
    content = report(verification={**stages(**changes), "lost_at": "fake_quant"})
    assert answer(content, 2).sentences[0] == "No: the engine loses accuracy that quantised PyTorch still has."
    steps = answer(content, 3).sentences
    assert steps[0].endswith(" --finetune 4 --budget latency=0.65x --out runs/mine`.")
    assert steps[1].startswith(
        "To win accuracy back, fine-tune (the task needs training data), or allow more budget; the"
    )
    assert steps[2].startswith("Find the layer that differs at the engine")


def test_stages_that_had_fewer_samples_say_so_and_give_no_figure_of_their_own() -> None:
    few = {name: {**VERIFICATION["stages"][name], "samples": 1_024} for name in ("float", "fake_quant", "onnx")}
    text = " ".join(answer(report(verification=stages(**few)), 2).sentences)
    assert "10,000 samples: PyTorch as given 88.50 % (87.90 to 89.10); the engine 88.41 % (87.81 to 89.01)." in text
    assert "Step to quantised PyTorch on 1,024 samples: −0.08" in text
    assert "Step to the engine on 1,024 samples: −0.01" in text


def test_a_loss_that_no_single_stage_shows_is_a_loss() -> None:
    whole = {"change": -0.003, "interval": [-0.005, -0.001], "agreement": 0.98}
    found = answer(report(verification={**VERIFICATION, "whole": whole}), 2)
    assert found.verdict == "no"
    assert found.sentences[0] == (
        "No: the engine is less accurate than PyTorch as given. The data do not tell at which stage it was lost, the "
        "largest drop is at quantised PyTorch."
    )
    assert answer(report(verification={**VERIFICATION, "whole": whole}), 3).sentences[1].startswith("To win accuracy")


def test_confidences_are_told_and_warned_of_where_they_moved() -> None:
    told = answer(report(), 2).sentences
    (spread,) = [each for each in told if "Confidence" in each]
    assert "PyTorch as given 0.991 (0.44 to 1); the engine 0.988 (0.41 to 1)" in spread
    fallen = {**VERIFICATION["confidence"], "change": -0.41, "interval": [-0.43, -0.39]}
    told = answer(report(verification={**VERIFICATION, "confidence": fallen}), 2).sentences
    assert "Choose thresholds on the confidence anew, on the engine." in told
    without = report(verification={**VERIFICATION, "confidence": None})
    assert not [each for each in answer(without, 2).sentences if "onfidence" in each]


def test_what_was_not_verified_is_not_the_same() -> None:
    for content in (
        report(verification=None),
        report(verification={**VERIFICATION, "stages": {"engine": stage(0.885)}}),
    ):
        assert answer(content, 2).verdict == "unknown"
        assert answer(content, 2).sentences[0].startswith("Not ")
    assert answer(report(verification=None), 3).sentences == (
        "Next: `smpq verify runs/mine`.",
        "Verify it before relying on its accuracy.",
    )


def test_another_metric_is_not_written_in_percent() -> None:
    verification = {
        **VERIFICATION,
        "metric": "minus squared error",
        "stages": {"float": stage(-2.5), "engine": stage(-2.75, -0.25)},
        "whole": {"change": -0.25, "interval": [-0.251, -0.249], "agreement": None},
    }
    text = " ".join(answer(report(verification=verification), 2).sentences)
    assert "Minus squared error over 10,000 samples: float PyTorch −2.5 (−2.506 to −2.494)" in text
    assert "%" not in text.replace("95 %", "")


def test_next_steps_follow_from_the_data() -> None:
    (nothing,) = answer(report(), 3).sentences
    assert nothing.startswith(
        "Nothing has to change; `smpq curve runs/mine` shows what other budgets would give. With budget to spare, "
        "widen "
    )
    limit = {"cost": "size", "limit": 200_000, "reached": 301_000, "unit": "bytes", "met": False}
    unclear = [layer("fc", interval=[-0.002, 0.001])]
    unmet = answer(report(met=False, limits=[limit], layers=unclear), 3).sentences
    assert unmet[0].endswith(" --budget size=310000B --out runs/mine`.")
    assert unmet[1].startswith("size ≤ 200 kB is not met, the nearest reached is 301 kB: allow that much")
    assert "1 layer" in unmet[2]
    assert "includes zero for 1 layer (fc)" in unmet[2]
    stability = {
        "schema": 2,
        "policy": "conv1=w8a8",
        "resamples": 40,
        "allocation": None,
        "undecided": ["fc"],
        "frequencies": {"fc": {"w8a8": 0.5, "w4a8": 0.5}},
    }
    following, undecided = answer(report(stability=stability), 3).sentences
    assert following.endswith(" --effort thorough --budget latency=0.65x --out runs/mine-thorough`.")
    assert undecided.startswith("At this budget the scores cannot tell which format fc should get")
    assert answer(
        report(stability={**stability, "undecided": [], "frequencies": {"fc": {"w8a8": 1.0}}}), 3
    ).sentences == (nothing,)
    unknown = answer(
        unmeasured(limits=[{"cost": "latency", "limit": 0.6, "reached": None, "unit": "x", "met": None}]), 3
    ).sentences
    assert unknown[0] == "Next: `smpq doctor --target tensorrt-rtx`."
    assert unknown[1] == "Whether latency ≤ 0.6x is met is not known: it was not measured."


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (report(), "On its CPU, not on its GPU: engine.ort-cpu.onnx is an ONNX file"),
        (report(), "--target jetson-orin"),
        (report(), "It was timed on a processor, Linux x86_64; the latency on another machine"),
        (report(target="simulate"), "not faster anywhere"),
        (report(target="ort-cuda"), "Nothing of it was verified on Orin"),
        (unmeasured(target="jetson-orin-7.2"), "It is made for it: the formats are those of Orin's TensorRT"),
        (report(target="jetson-orin", engine={"sm87": "engine.jetson-orin.sm87.plan"}),
         "measured is in engine.jetson-orin/, with two programs"),
        (unmeasured(), "Not this engine (sm120, sm86)"),
        (unmeasured(), "Carry model.tensorrt-rtx.onnx of this run to the device and build it there"),
        (unmeasured(), "It was not timed: its latency has to be measured"),
        (unmeasured(target="tensorrt", engine="engine.plan"), "Not this engine: a plan runs"),
        (report(not_on_orin=["w3a8 on conv2d"]), "no kernels for w3a8 on conv2d:"),
    ],
)  # fmt: skip
def test_orin(content: ReportFile, expected: str) -> None:
    assert expected in " ".join(answer(content, 4).sentences)


def test_formats_that_orin_has_are_not_complained_about() -> None:
    assert "no kernels" not in " ".join(answer(report(), 4).sentences)


def test_without_a_budget_nothing_more_is_asked_for() -> None:
    """As after smpq take."""
    assert answer(report(budget="", limits=[], met=False), 1).sentences == ("It is faster.",)
    asked = {"cost": "size", "limit": 1000, "reached": 301_000, "unit": "bytes", "met": False}
    assert answer(report(limits=[asked], met=False), 1).sentences[0].startswith("It is faster, but the budget asks")


def test_the_float_engine_is_no_faster_than_itself() -> None:
    """Whatever two measurements of one engine say."""
    own = {"policy": {"conv1": "fp16"}, "size_bytes": 546_500, "is_float": True}
    for interval in ([0.97, 0.99], [1.01, 1.03], [0.98, 1.02]):
        content = report(latency={**LATENCY, "ratio": sum(interval) / 2, "interval": interval}, **own)
        assert answer(content, 0).verdict == "no"
        assert answer(content, 0).sentences[0].startswith("No, it is the float engine. Measured against itself it")
        assert "It is faster" not in " ".join(answer(content, 1).sentences)
