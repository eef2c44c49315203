"""Copies of modules."""

from __future__ import annotations

import torch
from torch import nn

from calib.network.modules import writable


def test_a_model_made_under_inference_mode_is_copied():
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    found = writable(model)
    assert found is not model
    assert not any(tensor.is_inference() for tensor in found.state_dict().values())
    with torch.no_grad():
        assert torch.equal(found(torch.ones(2, 3)), model(torch.ones(2, 3)))
    found(torch.ones(2, 3)).sum().backward()
    assert writable(found) is found
