"""What counts as a clip that an integer kernel does by saturating."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calib.network.clips import is_clip
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
