"""Every entry of the capability tables that can be checked here, against what the runtimes really make of one layer."""

from __future__ import annotations

import pytest

from benchmarks.probe import Finding, cases, disagreement, probe, stated
from calib.formats.format import FP16, FP32, Format
from deploy.targets.rules import OPERATORS, Capability
from deploy.targets.target import Target, table, target_from_name
from tests.deploy.backends.builds import needs_rtx

W8A8, W7A8, W4 = (Format.from_text(text) for text in ("w8a8", "w7a8", "w4a16"))


EVERY = "sm86"
"""The compute capability that is tried with every rule."""
LIKE = {"sm121": "sm120"}
"""Another one of the same generation, of which the table says much the same."""
SHARE = 16
"""For the others, one in so many of the cases whose answer is the same; `benchmarks/capability.py` tries them all."""


def one_of_each_rule(target: Target) -> list[tuple[str, Format]]:
    """Of the formats that a rule decides about for an operator the last one, and of the operators that it refuses the
    last one; the benchmark tries up to three formats of all.
    """
    found: dict[tuple[str, str], dict[str, Format]] = {}
    for operator, format_ in cases(target):
        answer = stated(target, operator, format_)
        found.setdefault((answer.status, answer.note), {})[operator] = format_
    rows = ((status, list(tried.items())) for (status, _), tried in found.items())
    few = (tried if status != "refused" else tried[-1:] for status, tried in rows)
    return [case for tried in few for case in tried]


def disagreements(target: Target, tried: list[tuple[str, Format]]) -> list[str]:
    found = []
    for operator, format_ in tried:
        wrong = disagreement(stated(target, operator, format_), format_, probe(target, operator, format_))
        if wrong:
            found.append(f"{operator} in {format_}: {wrong}")
    return found


def chosen(target: Target) -> list[tuple[str, Format]]:
    """The cases that the table answers in another way than for `EVERY`, or for what the capability is like, and a share
    of the rest.
    """
    every = target_from_name("tensorrt-rtx", [LIKE.get(target.compute_capabilities[0], EVERY)])
    usual = set(cases(every))
    other, same = [], []
    for case in one_of_each_rule(target):
        differs = case not in usual or stated(target, *case) != stated(every, *case)
        (other if differs else same).append(case)
    return other + same[int(target.compute_capabilities[0][2:]) % SHARE :: SHARE]


@pytest.mark.slow
def test_onnxruntime_makes_what_its_table_says():
    target = target_from_name("ort-cpu")
    assert disagreements(target, one_of_each_rule(target)) == []


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("compute_capability", [EVERY, "sm89", "sm120", "sm75", "sm80", "sm121"])
def test_tensorrt_rtx_makes_what_its_table_says(compute_capability):
    target = target_from_name("tensorrt-rtx", [compute_capability])
    tried = one_of_each_rule(target) if compute_capability == EVERY else chosen(target)
    assert tried
    assert disagreements(target, tried) == []


@pytest.mark.parametrize(
    "targets",
    [[target_from_name("ort-cpu")], [target_from_name("tensorrt-rtx", [one]) for one in ("sm75", "sm86", "sm89")]],
    ids=["ort-cpu", "tensorrt-rtx"],
)
def test_every_rule_is_tried(targets):
    tried = [(target, *case) for target in targets for case in cases(target)]
    assert {operator for _, operator, _ in tried} == set(OPERATORS)
    notes = {stated(*case).note for case in tried}
    rows = [
        row
        for target in targets
        for row in table(target)
        if not row.several_calls and row.outputs_not_divisible_by is None  # see tests/deploy/lowering
    ]
    assert not [row.note for row in rows if row.note not in notes]


def test_a_layer_is_what_its_format_says():
    target = target_from_name("ort-cpu")
    assert probe(target, "conv2d", W8A8) == Finding("native", "QLinearConv", W8A8)
    assert probe(target, "conv2d", W7A8) == Finding("native", "QLinearConv", W8A8)
    assert probe(target, "conv2d", W4) == Finding("dequantized", "Conv + DequantizeLinear", W4)
    assert probe(target, "conv2d", FP16) == Finding("native", "Conv", FP32)
    assert "is not lowered" in probe(target, "conv2d", Format.from_text("w4a16b32")).what


@needs_rtx
def test_a_layer_is_what_its_format_says_in_tensorrt_rtx():
    target = target_from_name("tensorrt-rtx", ["sm86"])
    assert probe(target, "linear", W8A8) == Finding("native", "int8", W8A8)
    assert probe(target, "linear", W4) == Finding("dequantized", "dequantized", W4)
    assert probe(target, "conv2d", FP32).status == "refused"
    assert "does not build" in probe(target, "conv2d", Format.from_text("w4a8")).what


def test_disagreements_are_named():
    native, float_kernel = Finding("native", "QLinearConv", W8A8), Finding("refused", "Conv", W8A8)
    assert not disagreement(Capability("native", ""), W8A8, native)
    assert "the table says native, found refused: Conv" in disagreement(Capability("native", ""), W8A8, float_kernel)
    assert "found native: QLinearConv" in disagreement(Capability("refused", ""), W8A8, native)
    assert "found dequantized" in disagreement(Capability("native", ""), W4, Finding("dequantized", "Conv", W4))
    assert not disagreement(Capability("refused", ""), W4, Finding("refused", "does not build"))
    assert not disagreement(Capability("unknown", ""), W8A8, native)


def test_a_format_held_by_wider_types_is_another_one():
    wider = Finding("native", "QLinearConv", W8A8)
    assert "stored as w8a8" in disagreement(Capability("native", ""), W7A8, wider)
    assert not disagreement(Capability("native", "", stored_as=W8A8), W7A8, wider)
    assert not disagreement(Capability("refused", ""), W7A8, wider)
