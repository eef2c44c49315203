"""What a target offers a layer, and what it says when it does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from calib.formats.format import Format, formats_from_text
from deploy.targets.offers import may_fail, offer, refusal, unknown_offers
from deploy.targets.target import target_from_name
from smpq.problem.groups import space_from_formats
from smpq.problem.policy import Group
from tests.deploy.networks import export, mlp, residual

W4, BLOCKS, W8A8 = (Format.from_text(text) for text in ("w4a16", "w4a16b16", "w8a8"))


def unit_of(operator):
    return next(
        unit for unit in (*residual().units, *mlp().units) if unit.operator == operator and unit.in_features > 16
    )


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt-rtx"])
def test_what_only_saves_bytes_is_offered_when_asked_for(target):
    described, unit = target_from_name(target), unit_of("conv2d")
    reason = refusal(described, unit, W4, size_only=False)
    assert reason is not None
    assert "--size-only" in reason
    assert refusal(described, unit, W4, size_only=True) is None


def test_what_is_refused_says_why_and_no_flag_helps():
    reason = refusal(target_from_name("tensorrt-rtx"), unit_of("conv2d"), Format.from_text("w4a8"), size_only=True)
    assert reason is not None
    assert "does not build" in reason


def test_what_nobody_has_seen_is_offered_and_said():
    units = mlp().units
    groups = tuple(Group(unit.path, (unit,)) for unit in units)
    for name, count in (("jetson-orin", 1), ("tensorrt-rtx", 0)):
        target = target_from_name(name)
        space, refused = space_from_formats(
            groups,
            formats_from_text("w4a16b16,w8a8"),
            target.reference,
            lambda unit, chosen, target=target: refusal(target, unit, chosen, size_only=False),
        )
        assert not refused
        assert all(BLOCKS in formats for formats in space.formats.values())
        sentences = unknown_offers(target, space)
        assert len(sentences) == count
        assert all("w4a16b16 on linear has not been seen on jetson-orin" in sentence for sentence in sentences)


def test_layers_that_may_fail_are_named_with_the_reason():
    units = residual().units
    groups = tuple(Group(unit.path, (unit,)) for unit in units)
    target = target_from_name("tensorrt")
    space, _ = space_from_formats(groups, (W8A8, target.reference), target.reference, lambda *_: None)
    assert {group for group, _ in may_fail(target, space)} == {"stem", "a", "b", "twice"}, "8 channels"
    assert {group for group, _ in may_fail(target, space, batch=1)} == {"stem", "a", "b", "twice", "head", "last"}, (
        "one row"
    )
    assert may_fail(target_from_name("tensorrt-rtx"), space, batch=1) == frozenset()
    sentences = unknown_offers(target, space, batch=1)
    assert len(sentences) == 2
    assert "fewer than 16 channels" in sentences[0]
    assert "stem, a, b and 1 more" in sentences[0]
    assert "head, last" in sentences[1]


class OfTokens(nn.Linear):
    """Multiplies the rows of a matrix, as `addmm` of many language models does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.view(-1, x.shape[-1])).view(*x.shape[:-1], -1)


@pytest.mark.parametrize(("tokens", "status"), [(9, "native"), (1, "unknown")])
def test_tokens_of_one_sample_are_several_rows(tmp_path, tokens, status):
    (unit,) = export(nn.Sequential(OfTokens(64, 64)), torch.randn(4, tokens, 64), tmp_path).units
    assert unit.operator == "linear"
    assert offer(target_from_name("tensorrt"), unit, W8A8, batch=1).status == status
