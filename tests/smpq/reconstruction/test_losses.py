"""What a block's error costs by each loss."""

import pytest
import torch

from smpq.reconstruction.losses.base import LOSSES, Sensitivity

QUADRATIC = torch.tensor([[4.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 0.1]])
"""The Fisher information of a block with three outputs: the third hardly matters."""


def seen(count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    errors = torch.rand(count, 3, generator=generator)
    return [
        Sensitivity(part @ QUADRATIC, part, index)
        for part, index in zip(errors.split(4), torch.arange(count).split(4), strict=True)
    ]


@pytest.mark.parametrize("name", LOSSES)
def test_no_error_costs_nothing_and_more_costs_more(name):
    loss = LOSSES[name].make(1)
    for time in range(max(LOSSES[name].times, 1)):
        loss.learn(seen(seed=time))
    index, error = torch.arange(4), torch.rand(4, 3)
    assert float(loss(torch.zeros(4, 3), index)) == 0
    assert float(loss(2 * error, index)) == pytest.approx(4 * float(loss(error, index)), rel=1e-3)


@pytest.mark.parametrize("name", ["mse", "brecq"])
def test_channels_are_summed_and_the_rest_is_averaged(name):
    tokens = torch.rand(2, 7, 3)
    index, costs = torch.arange(2), []
    for axis, error in ((-1, tokens), (1, tokens.transpose(1, 2))):
        loss = LOSSES[name].make(axis)
        loss.learn([Sensitivity(torch.zeros_like(error), error, index)])
        costs.append(float(loss(error, index)))
    assert costs == pytest.approx([3 * float(tokens.square().mean())] * 2)


@pytest.mark.parametrize("name", [name for name, kind in LOSSES.items() if kind.times])
def test_what_the_output_depends_on_costs_most(name):
    loss = LOSSES[name].make(1)
    loss.learn(seen())
    index = torch.arange(4)
    costs = [float(loss(torch.eye(3)[number].expand(4, 3), index)) for number in range(3)]
    assert costs[0] > costs[1] > 3 * costs[2]


def test_gradients_that_vanish_leave_the_squared_error():
    loss = LOSSES["brecq"].make(1)
    loss.learn([Sensitivity(torch.zeros(4, 3), torch.rand(4, 3), torch.arange(4))])
    assert float(loss(torch.ones(2, 3), torch.arange(2))) == 3


def test_squared_gradients_are_those_of_each_sample():
    loss = LOSSES["brecq"].make(1)
    shuffled = list(reversed(seen()))
    loss.learn(shuffled)
    sizes = torch.cat([part.gradient for part in seen()]).abs()
    weights = (sizes / sizes.square().mean().sqrt() + 1).square()
    expected = weights[5].sum() / weights.mean()
    assert float(loss(torch.ones(1, 3), torch.tensor([5]))) == pytest.approx(float(expected), rel=1e-5)


def test_the_low_rank_part_is_exact_along_what_was_learned():
    loss = LOSSES["fima-q"].make(1)
    whole = seen()
    loss.learn(whole)
    mean = sum(part.error.sum(0) for part in whole) / 8
    low_rank, _ = loss.parts(mean[None])
    assert float(low_rank) == pytest.approx(float((mean @ QUADRATIC @ mean) ** 2 / (mean @ mean)), rel=1e-4)
