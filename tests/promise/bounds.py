"""How far a result may be from another one: measured on the network itself, by noise of the size that the formats
explain.

A fixed bound cannot serve all networks: one in front of a division by a small number makes much of a rounding, another
nothing. So the traced float model is run again with random errors where roundings happen, and the change of its output
is the unit of every bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from calib.formats.format import Format
from calib.network.execution import Edits
from calib.network.graph import TracedModel
from calib.network.units import Unit
from smpq.quantized.plan import QuantPlan
from tests.promise.oracle import Inputs, tensors

_DRAWS = 4
_MANY_DRAWS = 32
"""For what few draws tell badly: the largest error of a single number, or of one flipped rounding."""
_FLOAT_NOISE = 3e-7
"""Relative error of one float32 operator: a few units in the last place."""
_WEIGHT_ONLY_BITS = 8
"""Kernels of weight-only layers round their input to this many bits, block by block (deploy/backends/onnxruntime)."""


class Noise:
    """Runs the float model with errors in its tensors; `scales` are the largest absolute values seen of each of its
    tensors.
    """

    def __init__(self, traced: TracedModel, seen: Sequence[Inputs], seed: int) -> None:
        self._traced = traced
        self._generator = torch.Generator().manual_seed(seed)
        self._ranges: dict[str, tuple[float, float]] = {}
        for batch in seen:
            traced.run(batch, observe=self._observe)

    def of_floats(self, batch: Inputs) -> list[Tensor]:
        """The largest change of each output value when every float operator makes errors of float32."""
        edits = dict.fromkeys(self._ranges, self._relative)
        return self._largest(batch, lambda: Edits(sources=edits))

    def of_formats(self, batch: Inputs, plan: QuantPlan, units: Sequence[Unit], *, many: bool = False) -> list[Tensor]:
        """The largest root mean square change of each output when every quantised tensor is off by up to a whole step.

        `many`: of 32 draws. Four of an output with one value may all be small by chance.
        """
        sources, edges = {}, {}
        for entry in plan.tensors:
            step = self._step(entry.tensor, entry.quantizer.bits)
            if entry.consumers is None:
                sources[entry.tensor] = self._uniform(step)
            edges.update({(entry.tensor, consumer): self._uniform(step) for consumer in entry.consumers or ()})
        for unit in units:
            chosen = plan.formats[unit.path]
            if not chosen.is_float and not chosen.quantizes_activation:
                edges.update(
                    {
                        (tensor, call): self._uniform(self._step(tensor, _WEIGHT_ONLY_BITS))
                        for tensor, call in zip(unit.inputs, unit.calls, strict=True)
                    }
                )
        draws = _MANY_DRAWS if many else _DRAWS
        return self._largest(batch, lambda: Edits(sources, edges, self._weights(plan, units)), of_all=True, draws=draws)

    def of_flips(self, batch: Inputs, plan: QuantPlan) -> list[Tensor]:
        """The largest root mean square change of each output when one value of every quantised activation is rounded to
        the next integer.

        Where a tensor has four values, one of them is a larger share of all than of a tensor with a thousand.
        """
        sources, edges = {}, {}
        for entry in plan.tensors:
            if entry.consumers is None:
                sources[entry.tensor] = self._flipped(entry.quantizer.scale)
            edges.update(
                {(entry.tensor, consumer): self._flipped(entry.quantizer.scale) for consumer in entry.consumers or ()}
            )
        return self._largest(batch, lambda: Edits(sources, edges), of_all=True, draws=_MANY_DRAWS)

    def _flipped(self, step: float) -> Callable[[Tensor], Tensor]:
        def edit(tensor: Tensor) -> Tensor:
            changed = tensor.clone()
            if changed.numel():
                changed.view(-1)[int(torch.randint(changed.numel(), (1,), generator=self._generator))] += step
            return changed

        return edit

    def _weights(self, plan: QuantPlan, units: Sequence[Unit]) -> dict[str, Tensor]:
        return {
            unit.weight: self._traced.state[unit.weight]
            + self._weight_error(self._traced.state[unit.weight], plan.formats[unit.path])
            for unit in units
            if unit.path in plan.weights
        }

    def _weight_error(self, weight: Tensor, chosen: Format) -> Tensor:
        rows = weight.float().flatten(1)
        if chosen.weight_block is None:
            largest = rows.abs().amax(1, keepdim=True).expand_as(rows)
        else:
            blocks = rows.unflatten(1, (-1, chosen.weight_block))
            largest = blocks.abs().amax(2, keepdim=True).expand_as(blocks).flatten(1)
        step = largest / (2 ** (chosen.weight_bits - 1) - 1)
        return (step * self._random(rows)).reshape(weight.shape)

    def _largest(
        self, batch: Inputs, edits: Callable[[], Edits], *, of_all: bool = False, draws: int = _DRAWS
    ) -> list[Tensor]:
        plain = [tensor.double() for tensor in tensors(self._traced.run(batch))]
        found = [torch.zeros(()).double() if of_all else torch.zeros_like(tensor) for tensor in plain]
        for _ in range(draws):
            changed = tensors(self._traced.run(batch, edits()))
            for index, (before, after) in enumerate(zip(plain, changed, strict=True)):
                if before.shape != after.shape:  # how much there is depends on the values: no bound can be given
                    found[index] = torch.full_like(found[index], torch.inf)
                    continue
                change = (after.double() - before).abs()
                found[index] = torch.maximum(found[index], rms(change) if of_all else change)
        return found

    def _observe(self, name: str, tensor: Tensor) -> None:
        if tensor.is_floating_point() and tensor.numel():
            low, high = self._ranges.get(name, (0.0, 0.0))
            self._ranges[name] = (min(low, float(tensor.min())), max(high, float(tensor.max())))

    def _step(self, tensor: str, bits: int) -> float:
        low, high = self._ranges.get(tensor, (0.0, 0.0))
        return 2 * max(-low, high) / (2**bits - 1)

    def _uniform(self, step: float) -> Callable[[Tensor], Tensor]:
        """Errors of each value for itself, and one of all values together: a constant in front of a rounding shifts
        them alike.
        """
        return lambda tensor: tensor + step * (self._random(tensor) + self._random(torch.zeros(())))

    def _relative(self, tensor: Tensor) -> Tensor:
        return tensor * (1 + _FLOAT_NOISE * self._random(tensor).to(tensor.dtype))

    def _random(self, tensor: Tensor) -> Tensor:
        return torch.rand(tensor.shape, generator=self._generator) * 2 - 1


def rms(tensor: Tensor) -> Tensor:
    """Root mean square of all finite values; 0 of none."""
    kept = tensor[torch.isfinite(tensor)].double()
    return kept.square().mean().sqrt() if kept.numel() else torch.zeros(()).double()
