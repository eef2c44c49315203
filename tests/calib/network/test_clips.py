"""What counts as a clip that an integer kernel does by saturating."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calib.network.clips import clipped, is_clip
from calib.network.graph import TracedModel


class Does(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return self.what(x * 2)


@pytest.mark.parametrize(
    ("what", "clips"),
    [
        (F.relu, True),
        (F.relu6, True),
        (F.hardtanh, True),
        (lambda x: x.clamp(-0.5, 2), True),
        (lambda x: x.clamp(min=0), True),
        (lambda x: torch.clip(x, max=1.0), True),
        (lambda x: x.clamp(0.1, 2), False),
        (lambda x: torch.clamp(x, x.mean(), x.max()), False),
        (F.gelu, False),
    ],
)
def test_is_clip(what, clips):
    traced = TracedModel(Does(what).eval(), (torch.randn(2, 3),))
    last = traced.output.all_input_nodes[0]
    assert is_clip(last) is clips


@pytest.mark.parametrize(
    ("what", "last"),
    [
        (F.relu, 1),
        (lambda x: F.relu(x).clamp(max=6), 2),
        (lambda x: F.relu6(F.relu(x)).clamp(-1, 5), 3),
        (lambda x: F.relu(x).clamp(0.1, 2), 0),  # the exporter makes one clip of both, and that is none for integers
        (lambda x: F.relu(x) + F.relu(x).clamp(max=6), 1),
    ],
)
def test_of_several_clips_the_last_one_counts(what, last):
    traced = TracedModel(Does(what).eval(), (torch.randn(2, 3),))
    assert clipped(traced.steps[0]) is traced.steps[last]
