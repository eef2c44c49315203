"""Where a loss is known that nobody notices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from calib.network.graph import TracedModel
from smpq.value.negligible import negligible_loss


class Plain:
    """A task without a divergence of its own."""


class Own:
    """A task that says itself how far two outputs are apart."""

    def divergence(self, output, float_output):
        return (output - float_output).square().sum(1)


class Giving(nn.Module):
    """Gives tensors of these shapes, made from its input, and whole numbers where the type says so."""

    def __init__(self, *shapes, whole=()):
        super().__init__()
        self.shapes, self.whole = shapes, whole

    def forward(self, x):
        made = tuple(x.mean((1, 2, 3)).reshape(-1, *[1] * len(shape)).expand(-1, *shape) + 1 for shape in self.shapes)
        return (*made, *((x[:, :1, 0, :size] > 0).long() for size in self.whole))


@pytest.mark.parametrize(
    ("task", "value", "network", "known"),
    [
        (Plain(), "kl", Giving((10,)), True),
        (Plain(), "kl", Giving((10,), (3,), whole=(4,)), True),
        (Plain(), "loss", Giving((10,)), False),
        (Plain(), "metric", Giving((10,)), False),
        (Own(), "kl", Giving((10,)), False),
        (Plain(), "kl", Giving((1,)), False),
        (Plain(), "kl", Giving((10, 7, 7)), False),
        (Plain(), "kl", Giving((100, 6)), False),
        (Plain(), "kl", Giving((10,), (3, 8, 8)), False),
        (Plain(), "kl", Giving(()), False),
    ],
)
def test_of_distributions_over_classes_alone(task, value, network, known):
    traced = TracedModel(network.eval(), (torch.randn(2, 3, 8, 8),))
    assert (negligible_loss(task, value, traced) > 0) == known
