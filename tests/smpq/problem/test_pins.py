"""Formats that a person pins to layers."""

from __future__ import annotations

import pytest

from calib.errors import UserError
from calib.formats.format import FP32, Format
from smpq.problem.groups import find_groups, space_from_formats
from smpq.problem.pins import pin_from_text
from tests.smpq.problems import W4A16, W8A8, residual

FORMATS = (W8A8, W4A16, FP32)
ALL = {"stem": FORMATS, "a": FORMATS, "c": FORMATS, "d": FORMATS, "head": FORMATS}


@pytest.fixture(scope="module")
def groups():
    network = residual()
    return find_groups(network.traced, network.units)


def rows(groups, *pins, formats=FORMATS, allowed=lambda _unit, _chosen: None):
    space, _ = space_from_formats(groups, formats, FP32, allowed, pins=[pin_from_text(text) for text in pins])
    return dict(space.formats)


@pytest.mark.parametrize(
    ("pins", "changed"),
    [
        ((), {}),
        (("head=float",), {"head": (FP32,)}),
        (("h*=int8",), {"head": (W8A8,)}),
        (("[cd]!=w4a16",), {"c": (W8A8, FP32), "d": (W8A8, FP32)}),
        (("skip=w8a8",), {"a": (W8A8,)}),  # shares its format with a and b
        (("*=w8a8", "head = float"), {**dict.fromkeys(ALL, (W8A8,)), "head": (FP32,)}),
        (("head=w8a8", "head!=w4a16"), {"head": (W8A8,)}),
        (("stem!=float", "stem!=w4a16"), {"stem": (W8A8,)}),
        (("head=w3a8",), {"head": (Format.from_text("w3a8"),)}),  # not among those to choose from
    ],
)
def test_what_pins_leave(groups, pins, changed):
    assert rows(groups, *pins) == {**ALL, **changed}


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        (("head",), "'head' pins nothing: write a pattern of layers and a format"),
        (("=w8a8",), "pins nothing"),
        (("head=w8a8,fp32",), "pins nothing"),
        (("head=w99",), "w99"),
        (("tail*=w8a8",), r"no layer matches 'tail\*'; there are stem, "),
        (("a=w8a8", "skip=w4a16"), "share a format, and 'a=w8a8' and 'skip=w4a16' pin several"),
        (("head!=w8a8", "head!=w4a16", "head!=float"), "no format is left for head"),
        (("head=w8a8", "h*!=w8a8"), r"no format is left for head: 'h\*!=w8a8' leave none"),
    ],
)
def test_pins_that_cannot_be_kept(groups, pins, message):
    with pytest.raises(UserError, match=message):
        rows(groups, *pins)


def test_a_pin_to_what_the_target_does_not_run(groups):
    with pytest.raises(UserError, match="head cannot have what it is pinned to: no kernel"):
        rows(groups, "head=w4a16", allowed=lambda _unit, chosen: "no kernel" if chosen == W4A16 else None)


def test_uniform_policies_keep_pins(groups):
    space, _ = space_from_formats(
        groups, FORMATS, FP32, lambda _unit, _chosen: None, pins=[pin_from_text("head=w8a8"), pin_from_text("d=float")]
    )
    uniform = space.uniform(W4A16)
    assert {name: uniform[name] for name in ("stem", "d", "head")} == {"stem": W4A16, "d": FP32, "head": W8A8}
    assert set(space.uniform(FP32).formats.values()) == {FP32}, "the float model, which everything is compared with"
