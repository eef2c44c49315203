"""Scales and shifts of single channels,
folded into the LayerNorms in front of layers whose activations have few bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from calib.calibrate import Calibration
from calib.formats.quantizers import Scheme
from calib.network.graph import TracedModel
from calib.network.rescaling import RescalableNorm, rescalable_norms, rescaled
from calib.network.units import Unit
from calib.task import Batch
from smpq.quantized.plan import QuantizedTensor, QuantPlan
from smpq.training.finetune import Subject
from smpq.training.trainable import leaf_names

Calibrate = Callable[[TracedModel, Sequence[Unit]], Calibration]

_ENOUGH_BITS = 8
_SMALLEST_SHARE = 0.01
"""Of the mean span: a channel that hardly varies on the calibration data may vary more on others."""


def with_channel_scales(subject: Subject, batches: Iterable[Batch], calibrate: Calibrate) -> Subject:
    """Return the subject with a network that computes the same, whose channels in front of layers with activations
    below 8 bits all span the same range, around zero where they can be shifted.

    The step of a tensor is then that of each of its channels (Li et al., RepQ-ViT, arXiv 2212.08254, as in FIMA-Q).
    Ranges of the tensors and weights of the layers that are touched are calibrated anew by `calibrate`; all others are
    kept.
    """
    traced, plan = subject.traced, subject.plan
    coarse = {entry.tensor for entry in plan.tensors if entry.quantizer.bits < _ENOUGH_BITS}
    norms = [
        norm
        for norm in rescalable_norms(traced, subject.units, leaf_names(traced))
        if not coarse.isdisjoint(norm.tensors)
    ]
    if not norms:
        return subject
    tensors = {name for norm in norms for name in norm.tensors}
    ranges = _ranges(traced, coarse & tensors, batches)
    state: dict[str, Tensor] = {}
    for norm in norms:
        state |= rescaled(traced, norm, *_equal_spans([ranges[name] for name in norm.tensors if name in ranges], norm))
    changed = traced.with_state(state)
    touched = [unit for norm in norms for unit in norm.units]
    return replace(subject, traced=changed, plan=_calibrated_anew(plan, touched, tensors, calibrate(changed, touched)))


def _ranges(traced: TracedModel, tensors: set[str], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Return the smallest and the largest value of each channel, `[2, channels]` float64, by tensor."""
    found: dict[str, Tensor] = {}

    def note(name: str, tensor: Tensor) -> None:
        if name in tensors:
            rows = tensor.reshape(-1, tensor.shape[-1]).double()
            low, high = rows.amin(0), rows.amax(0)
            if name in found:
                low, high = torch.minimum(found[name][0], low), torch.maximum(found[name][1], high)
            found[name] = torch.stack([low, high])

    for batch in batches:
        traced.run(batch.inputs, observe=note)
    return found


def _equal_spans(ranges: Sequence[Tensor], norm: RescalableNorm) -> tuple[Tensor, Tensor | None]:
    """Return the factor of each channel, 1 on average, and the middle of its range where the norm can be shifted."""
    low, high = torch.stack(list(ranges))[:, 0].amin(0), torch.stack(list(ranges))[:, 1].amax(0)
    shift = (low + high) / 2 if norm.shifts else None
    spans = (high - low) / 2 if norm.shifts else torch.maximum(low.abs(), high.abs())
    mean = spans.mean()
    if not mean > 0:
        return torch.ones_like(spans), shift
    return (spans / mean).clamp(min=_SMALLEST_SHARE), shift


def _calibrated_anew(plan: QuantPlan, units: Sequence[Unit], tensors: set[str], calibration: Calibration) -> QuantPlan:
    def ranged(entry: QuantizedTensor) -> QuantizedTensor:
        if entry.tensor not in tensors:
            return entry
        scheme: Scheme = "symmetric" if entry.quantizer.signed else "affine"
        return replace(entry, quantizer=calibration.quantizer(entry.tensor, entry.quantizer.type, scheme))

    weights = {
        unit.path: calibration.weight(unit, plan.formats[unit.path]) for unit in units if unit.path in plan.weights
    }
    return replace(plan, tensors=tuple(map(ranged, plan.tensors)), weights={**plan.weights, **weights})
