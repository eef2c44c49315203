"""A deep-unfolded MIMO detector: five projected gradient steps, with a learned step size and a small perceptron each.

As PGD-Net of KAQ (arXiv 2505.12736) for y = H x + n in real numbers: T transmitted streams are 2T, R antennas 2R. All
streams share a perceptron, so that one set of weights serves any number of antennas. A receiver has the linear MMSE
estimate at hand, and the network begins there: from zero five steps end in an error floor.

Steps that follow the channel (KAQ's dynamic steps; its rule was not published, this one is ours): a layer divides
what it multiplies by a gain, looked up by the bucket that the channel is in, and multiplies its result by it.
Rounding x / g with a step s is rounding x with the step g * s, so each bucket has a step of its own, in one engine
with constant steps. The bucket is that of the mean error variance of the linear estimate, which noise and fading
decide together. In float the gains cancel, so they are 1 until a training in formats moves them, as it does any
parameter.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

LAYERS, HIDDEN, MESSAGES, BUCKETS = 5, 32, 4, 8
_LEAST = 1e-6
_FASTER = 10.0
"""Gradients of gains are small. Measured: with 1 they hardly move."""


class Following(nn.Module):
    """A linear layer on `[n, 2T, inputs]` whose input is rounded with steps that follow the bucket `[n]` of the
    channel.

    The bias is added behind the gain.
    """

    def __init__(self, inputs: int, outputs: int, buckets: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.gains = nn.Parameter(torch.zeros(buckets))
        """A tenth of the natural logarithm."""

    def forward(self, x: Tensor, bucket: Tensor) -> Tensor:
        """Return `[n, 2T, outputs]`."""
        # one bucket is a gain that does not follow anything
        own = self.gains if len(self.gains) == 1 else self.gains.index_select(0, bucket)
        gain = (_FASTER * own).exp()[:, None, None]
        result: Tensor = self.linear(x / gain) * gain + self.bias
        return result


class Layer(nn.Module):
    """A gradient step, then the projection that a perceptron refines."""

    def __init__(self, values: Tensor, hidden: int, buckets: int) -> None:
        super().__init__()
        self.eta = nn.Parameter(torch.tensor(0.1))
        self.state = Following(3 + 2 * MESSAGES, hidden, buckets)
        self.errors = Following(4, hidden, buckets)
        self.middle = Following(hidden, hidden, buckets)
        self.last = Following(hidden, 2 + MESSAGES, buckets)
        self._half = float(values[1] - values[0]) / 2
        self._middles = ((values[1:] + values[:-1]) / 2).tolist()

    def forward(self, x: Tensor, doubt: Tensor, messages: Tensor, seen: Seen) -> tuple[Tensor, Tensor, Tensor]:
        """Return the estimate `[n, 2T]`, how much it is in doubt (a variance), and what is passed on `[n, 2T, 4]`."""
        descent = seen.matched - (seen.gram @ x[:, :, None])[:, :, 0]
        moved = x + self.eta * descent
        passed = torch.cat([doubt[:, :, None], messages], 2)
        around = seen.coupling @ passed - passed
        disturbed = around[:, :, 0].clamp(min=_LEAST).sqrt()
        state = torch.cat([torch.stack([moved, x, seen.estimate], 2), messages, around[:, :, 1:]], 2)
        errors = torch.stack([descent, disturbed, seen.deviation, seen.noise], 2)
        hidden = torch.relu(self.state(state, seen.bucket) + self.errors(errors, seen.bucket))
        hidden = torch.relu(self.middle(hidden, seen.bucket))
        found = self.last(hidden, seen.bucket)
        return self._projected(moved + found[:, :, 0]), torch.sigmoid(found[:, :, 1]), torch.tanh(found[:, :, 2:])

    def _projected(self, x: Tensor) -> Tensor:
        """Draw `[n, 2T]` to the levels: a smooth staircase."""
        steps = [self._half * torch.tanh((x - middle) * (2 / self._half)) for middle in self._middles]
        return torch.stack(steps).sum(0) if len(steps) > 1 else steps[0]


class Seen(NamedTuple):
    """What the steps of a detector share. Streams have the energy 1 here: rows of H^T H and H^T y are divided by it."""

    matched: Tensor
    gram: Tensor
    coupling: Tensor
    estimate: Tensor
    deviation: Tensor
    noise: Tensor
    bucket: Tensor


class Detector(nn.Module):
    """Five unfolded steps from the linear estimate on. `buckets`: how many steps of a layer's input follow the
    channel.
    """

    edges: Tensor

    def __init__(self, values: Tensor, hidden: int = HIDDEN, buckets: int = BUCKETS, layers: int = LAYERS) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(values, hidden, buckets) for _ in range(layers))
        self.register_buffer("edges", torch.zeros(buckets - 1))

    def forward(self, y: Tensor, h: Tensor, estimate: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
        """Return soft symbols `[n, 2T]` of y `[n, 2R]`, H `[n, 2R, 2T]`, the linear MMSE estimate and the variance of
        its error `[n, 2T]`, and the standard deviation of the noise `[n, 1]`.
        """
        return self.estimates(y, h, estimate, variance, noise)[-1]

    def estimates(self, y: Tensor, h: Tensor, estimate: Tensor, variance: Tensor, noise: Tensor) -> list[Tensor]:
        """Return what each step found."""
        energy = h.square().sum(1)
        gram = (h.transpose(1, 2) @ h) / energy[:, :, None]
        matched = (h.transpose(1, 2) @ y[:, :, None])[:, :, 0] / energy
        deviation, noise = variance.sqrt(), noise / energy.sqrt()
        seen = Seen(matched, gram, gram.square(), estimate, deviation, noise, self.bucket(variance))
        x, doubt, messages = estimate, variance, torch.stack([estimate, deviation, noise, energy], 2)
        found = []
        for layer in self.layers:
            x, doubt, messages = layer(x, doubt, messages, seen)
            found.append(x)
        return found

    def bucket(self, variance: Tensor) -> Tensor:
        """Return the bucket `[n]` that each channel is in."""
        return (variance.mean(1)[:, None] > self.edges).sum(1)
