"""Where a loss is known that nobody notices."""

from __future__ import annotations

import pytest
import torch

from smpq.value.negligible import negligible_loss


class Plain:
    """A task without a divergence of its own."""


class Own:
    """A task that says itself how far two outputs are apart."""

    def divergence(self, output, float_output):
        return (output - float_output).square().sum(1)


@pytest.mark.parametrize(
    ("task", "value", "output", "known"),
    [
        (Plain(), "kl", torch.zeros(2, 10), True),
        (Plain(), "kl", (torch.zeros(2, 10), torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.int64)), True),
        (Plain(), "loss", torch.zeros(2, 10), False),
        (Plain(), "metric", torch.zeros(2, 10), False),
        (Own(), "kl", torch.zeros(2, 10), False),
        (Plain(), "kl", torch.zeros(2, 1), False),
        (Plain(), "kl", torch.zeros(2, 10, 7, 7), False),
        (Plain(), "kl", torch.zeros(2, 100, 6), False),
        (Plain(), "kl", (torch.zeros(2, 10), torch.zeros(2, 3, 8, 8)), False),
        (Plain(), "kl", torch.zeros(2, dtype=torch.int64), False),
    ],
)
def test_of_distributions_over_classes_alone(task, value, output, known):
    assert (negligible_loss(task, value, output) > 0) == known
