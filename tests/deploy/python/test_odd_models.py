"""`optimize` of models that do more with their inputs than read them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from calib.errors import UserError
from deploy import optimize

ASKED = {"budget": "size=0.5x", "target": "simulate", "evaluations": 12, "samples": 16, "formats": "w8a8,w4a8,fp32"}


class InPlace(nn.Module):
    """Scales what it is given where it stands."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x):
        return self.layers(x.div_(255))


def test_a_model_that_works_on_its_inputs_in_place(tmp_path):
    batches = [(255 * torch.rand(16, 6, generator=torch.Generator().manual_seed(n)),) for n in range(2)]
    kept = [inputs.clone() for (inputs,) in batches]
    result = optimize(InPlace().eval(), batches, batches, out=tmp_path / "run", verbose=False, **ASKED)
    assert result.accuracy["eager"].mean == 0.0, "its outputs are the targets"
    assert all(torch.equal(inputs, own) for (inputs,), own in zip(batches, kept, strict=True))


class Branches(nn.Module):
    """Does something else with more than 20 samples."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x):
        return self.layers(x if x.shape[0] <= 20 else 2 * x)


def test_sizes_that_the_trace_does_not_hold_for_are_refused(tmp_path):
    batches, many = [(torch.rand(16, 6),)], [(torch.rand(33, 6),)]
    result = optimize(Branches().eval(), batches, batches, out=tmp_path / "run", verbose=False, **ASKED)
    for called in (result.module, result.engine):
        assert called(*batches[0]).shape == (16, 3)
        with pytest.raises(UserError, match="what is given has 33 samples, and the engine holds for at most 20"):
            called(*many[0])
        with pytest.raises(UserError, match="what is given has samples of 7, and the engine takes 6"):
            called(torch.rand(2, 7))
    with pytest.raises(UserError, match="evaluation batch 0 has 33 samples"):
        optimize(Branches().eval(), batches, many, out=tmp_path / "other", verbose=False, **ASKED)
