"""Which networks are reconstructed before a search, and which of their weights it may choose."""

from calib.formats.format import FP32, Format
from smpq.problem.policy import Group, Space
from smpq.reconstruction.widths import widths_of
from tests.smpq.tunable import tunable


def space(**formats):
    units = {unit.path: unit for unit in tunable(rounding="nearest").units}
    groups = tuple(Group(name, (units[name],)) for name in formats)
    return Space(groups, {name: tuple(map(Format.from_text, texts)) for name, texts in formats.items()}, FP32)


def test_one_network_for_each_representation_below_eight_bits():
    found = widths_of(
        space(
            stem=("fp32", "w8a8", "w4a4", "w4a8", "w2a8"),
            plain=("fp32", "w1a8", "w4a16", "w4a16b2", "wm2.5a16b2"),
            head=("fp32", "w8a8"),
        )
    )
    assert [width.key for width in found] == ["w2", "wm2.5b2", "w4", "w4b2"]
    assert [{name: str(chosen) for name, chosen in width.policy.formats.items()} for width in found] == [
        {"stem": "w2a8", "plain": "fp32", "head": "fp32"},
        {"stem": "fp32", "plain": "wm2.5a16b2", "head": "fp32"},
        {"stem": "w4a8", "plain": "w4a16", "head": "fp32"},
        {"stem": "fp32", "plain": "w4a16b2", "head": "fp32"},
    ]


def test_only_weights_of_that_representation_are_taken():
    made = space(stem=("fp32", "w2a8"), head=("fp32", "w3a8"))
    first, second = widths_of(made)
    assert first.rounded(made, {"stem": "integers"}) == {("stem", "w2"): "integers"}
    assert second.rounded(made, {"head": "integers", "stem": "others"}) == {("head", "w3"): "integers"}


def test_nothing_to_reconstruct():
    assert widths_of(space(stem=("fp32", "w8a8", "wt7a8"), head=("fp32", "w1a8", "wfp8a16"))) == ()
