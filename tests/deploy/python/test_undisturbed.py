"""What the caller has switched on changes nothing, and the caller's state is left as it was."""

from __future__ import annotations

import random
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import nn

from calib.errors import UserError
from deploy import optimize
from deploy.python.undisturbed import undisturbed
from tests import tiny_task
from tests.deploy.python.test_optimize import FASTER, right


@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)]
)
def test_modes_of_torch_do_not_count(mode):
    with mode(), undisturbed(None):
        weight = torch.ones(2, 2, requires_grad=True)
        product = weight @ weight
        assert product.dtype == torch.float32
        product.sum().backward()


def seed():
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)


def drawn():
    return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002


@pytest.mark.parametrize("fails", [False, True])
def test_random_numbers_and_modes_of_modules_stay_as_they_were(fails):
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3)).train()
    model[1].eval()
    seed()
    expected = drawn()
    seed()
    with suppress(UserError), undisturbed(model):
        model.eval()
        drawn()
        if fails:
            raise UserError("wrong")
    assert drawn() == expected
    assert [part.training for part in model.modules()] == [True, True, False]


@pytest.mark.slow
def test_a_call_under_every_mode_trains_and_leaves_the_model_as_it_was(tmp_path):
    seed()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        network = nn.Sequential(tiny_task.network(), nn.Dropout()).train()
        state = torch.get_rng_state()
        result = optimize(
            network, tiny_task.batches(1), tiny_task.batches(2), right, out=tmp_path / "run", verbose=False,
            training=[tiny_task.batches(10)[0]], finetune=1, **{**FASTER, "formats": "w4a8,fp32"},
        )  # fmt: skip
        assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in network.modules()] == [True] * len(list(network.modules()))
    assert result.report.finetuning is not None
    exact = torch.cat([right(result.module(x), y) for x, y in tiny_task.batches(2)]).mean()
    assert result.accuracy["fake_quant"].mean == pytest.approx(float(exact))
