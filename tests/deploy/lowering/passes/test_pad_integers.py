"""A Pad between two pairs of one grid works on integers, with the same result."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.deploy.networks import export, nodes, relative_error, run_plain


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.b(F.pad(self.a(x), (0, 0, 0, 0, 2, 2), value=self.fill))

    fill = 0.0


class Filled(Padded):
    fill = 0.5


def _lowered(make, directory):
    torch.manual_seed(0)
    exported = export(make(), torch.randn(8, 2, 6, 6), directory)
    return exported, exported.lower(exported.formats("w8a8"), "ort-cpu", directory)


def test_zeros_become_zero_points(tmp_path):
    exported, lowered = _lowered(Padded, tmp_path)
    assert lowered.report.changes["pad_integers"] == 1
    (pad,) = (node for node in nodes(lowered.path).values() if node.op_type == "Pad")
    assert nodes(lowered.path)[pad.input[0]].op_type == "QuantizeLinear"
    found = run_plain(lowered.path, exported.batch, disable_quant_qdq="1")
    assert relative_error(found, lowered.expected) < 0.01


def test_another_filling_stays_in_float(tmp_path):
    _, lowered = _lowered(Filled, tmp_path)
    assert lowered.report.changes["pad_integers"] == 0
