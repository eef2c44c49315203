"""Measure the activations once, and round each weight once for every representation that is asked for."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from calib.choices import ObserverName, RoundingName, WidthRuleName
from calib.declared import check_declared
from calib.formats.format import Format
from calib.formats.number_type import NumberType
from calib.formats.quantizers import SCALE_OF_ZEROS, ActivationQuantizer, QuantizedWeight, Scheme, quantizer_from_range
from calib.heap import Gaps
from calib.moments import LayerMoments
from calib.network.attention import Attention
from calib.network.clips import is_clip
from calib.network.graph import TracedModel
from calib.network.nodes import JOINS, is_float, operator_name
from calib.network.residual import residual_adds
from calib.network.units import Unit
from calib.observers import Observed, observer_from_name, shares
from calib.rounding import own_rounding, rounding_from_name
from calib.rounding.widths import width_rule_from_name
from calib.task import Batch

_BIAS_LIMIT = 2**30


@dataclass(frozen=True)
class CalibrationSettings:
    """Names of the observer and the rounding method, the activation scheme of the target, and the rule of widths inside
    a layer.
    """

    observer: ObserverName = "mse"
    rounding: RoundingName = "gptq"
    scheme: Scheme = "affine"
    widths: WidthRuleName = field(default="error", repr=False)  # weights show it, and runs without it stay theirs

    def __post_init__(self) -> None:
        check_declared(self)


class Calibration:
    """Ranges of activations and rounded weights, each worked out on first use and then kept.

    Every layer is rounded on its *float* inputs, so that a rounded weight does not depend on the formats of other
    layers and all of them can be combined freely. A pickled copy holds what was worked out before, and nothing to work
    out more with: call `prepare` and `prepare_quantizers` first.
    """

    def __init__(
        self,
        traced: TracedModel,
        units: Sequence[Unit],
        batches: Sequence[Batch],
        settings: CalibrationSettings,
        memory_mb: float | None = None,
        attention: Sequence[Attention] = (),
    ) -> None:
        """Run the calibration batches through the float model once; more often where the moments of all layers do not
        fit into `memory_mb` (`calib.moments`). The operands of `attention` are observed too.
        """
        self.traced = traced
        self.settings = settings
        self.attention = tuple(attention)
        self._given = batches, settings, memory_mb, self.attention
        self._observer = observer_from_name(settings.observer)
        self._round = rounding_from_name(settings.rounding)
        self._choose_widths = width_rule_from_name(settings.widths)
        self._observed: dict[str, Observed] = {name: Observed() for name in _observed_tensors(traced, units, attention)}
        self._extremes: dict[str, tuple[float, float]] = {}
        """Of the floats that are not observed: their values are never quantised."""
        self._moments = LayerMoments(traced, units, batches, memory_mb)
        self._moments.collect(self._moments.parts[0], self._observe)
        self._quantizers: dict[tuple[str, NumberType, Scheme], ActivationQuantizer] = {}
        self._weights: dict[tuple[str, str], QuantizedWeight] = {}

    def _observe(self, name: str, tensor: Tensor) -> None:
        if name in self._observed:
            self._observed[name].add(tensor)
        elif tensor.is_floating_point() and tensor.itemsize > 1 and tensor.numel():  # half holds every FP8 number
            low, high = map(float, tensor.detach().aminmax())
            before = self._extremes.get(name, (low, high))
            self._extremes[name] = (min(before[0], low), max(before[1], high))

    def quantizer(self, tensor: str, grid: NumberType, scheme: Scheme) -> ActivationQuantizer:
        """Return the quantiser of one tensor of the graph; what softmax gives has an observer of its own."""
        key = (tensor, grid, scheme)
        if key not in self._quantizers:
            found = shares if any(tensor in each.shares for each in self.attention) else self._observer
            low, high = found(self._observed[tensor], grid, scheme)
            self._quantizers[key] = quantizer_from_range(low, high, grid, scheme)
        return self._quantizers[key]

    def weight(self, unit: Unit, chosen: Format) -> QuantizedWeight:
        """Return one unit's weight in the number type of a format, in the layout of the float weight."""
        key = (unit.path, chosen.weight_key)
        if key not in self._weights:
            weight = self.traced.state[unit.weight].float()
            matrix = weight.reshape(unit.out_features, -1)
            # what is only looked up sees no inputs: every error counts alike
            usual = self._round if unit.calls else rounding_from_name("nearest")
            method = own_rounding(chosen.weight) or usual
            moments, block = self._moments[unit.path], chosen.weight_block
            grid = chosen.weight.with_widths(
                lambda: self._choose_widths(matrix, moments, chosen.weight.bits, block or unit.in_features)
            )
            rounded = method(matrix, moments, grid, block, self._scale_floor(unit, chosen))
            self._weights[key] = replace(
                rounded, values=rounded.values.reshape(weight.shape), scale=rounded.scale.contiguous()
            )
        return self._weights[key]

    def take(self, weights: Mapping[tuple[str, str], QuantizedWeight]) -> None:
        """Use weights that were rounded elsewhere, by unit path and `Format.weight_key`, in place of its own."""
        self._weights |= weights

    def prepare(
        self, units: Sequence[Unit], formats: Mapping[str, Sequence[Format]], advance: Callable[[], None]
    ) -> None:
        """Round every weight that the search may need; `formats` is by unit path, `advance` is called after each
        weight. The moments of a layer are dropped behind its last weight, and what its rounding left free in the heap
        is given back (`calib.heap.Gaps`).
        """
        gaps = Gaps()
        for unit in units:
            for chosen in formats[unit.path]:
                if not chosen.is_float:
                    self.weight(unit, chosen)
                advance()
            self._moments.drop(unit.path)
            gaps.close(self.traced.state[unit.weight].nbytes)

    def prepare_quantizers(self, tensors: Iterable[str] | None, grids: Iterable[NumberType], scheme: Scheme) -> None:
        """Work out the ranges of `tensors` for these types; None: of all that were observed with finite values."""
        if tensors is None:
            tensors = [name for name, seen in self._observed.items() if math.isfinite(seen.high - seen.low)]
        wanted = tuple(tensors)
        for grid in grids:
            for tensor in wanted:
                self.quantizer(tensor, grid, scheme)

    def extremes(self, tensor: str) -> tuple[float, float] | None:
        """Return the smallest and the largest value that a tensor had on the calibration data; None where it has no
        floats, or no batch gives it.
        """
        seen = self._observed.get(tensor)
        return self._extremes.get(tensor) if seen is None else (seen.low, seen.high)

    def of(self, traced: TracedModel, units: Sequence[Unit]) -> Calibration:
        """Calibrate another network in the same way, on the same batches."""
        return Calibration(traced, units, *self._given)

    def digest(self) -> str:
        """Return a hash of the rounded weights and of what was seen of the activations, from which the quantisers
        follow.
        """
        found = hashlib.sha256(repr(self.settings).encode())
        for key, weight in sorted(self._weights.items()):
            found.update(repr((key, weight.bits, weight.block)).encode())
            found.update(weight.content())
        for name, seen in sorted(self._observed.items()):
            found.update(f"{name} {seen.low.hex()} {seen.high.hex()}".encode())
            for part in seen.parts:
                found.update(part.numpy().tobytes())
        return found.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("traced", "settings", "attention", "_quantizers", "_weights")
        return {name: getattr(self, name) for name in kept}

    def _scale_floor(self, unit: Unit, chosen: Format) -> Tensor:
        """Smallest step of each row such that an integer bias fits 32 bits in units of input step times weight step."""
        weight = self.traced.state[unit.weight]
        if unit.bias is None or not chosen.weight.is_integer or unit.gathers:
            return torch.zeros(unit.out_features, device=weight.device)
        # any tensor of 8 bits that spans the observed range has at least this step
        spans = [self._observed[name].high - self._observed[name].low for name in unit.inputs]
        smallest = max(
            min(span * 0.1 / 255 if span > 0 else SCALE_OF_ZEROS for span in spans), torch.finfo(torch.float32).tiny
        )
        floor = self.traced.state[unit.bias].abs().float() / (smallest * _BIAS_LIMIT)
        return floor.expand(unit.out_features)  # a bias of one number is added to all rows


def _observed_tensors(traced: TracedModel, units: Sequence[Unit], attention: Iterable[Attention]) -> list[str]:
    """Inputs and results of all units, sums and concatenations, what clips behind one of these give, the skips of
    residual adds, and the operands of attention.
    """
    names: dict[str, None] = {}
    for unit in units:
        names.update(dict.fromkeys(unit.inputs))
        names.update(dict.fromkeys(unit.calls))
    names.update({node.name: None for node in traced.graph.nodes if operator_name(node) in JOINS})
    left = list(names)
    for name in left:
        clips = [user.name for user in traced.consumers(name) if is_clip(user) and user.name not in names]
        names.update(dict.fromkeys(clips))
        left += clips
    names.update({add.grid: None for add in residual_adds(traced, units)})
    names.update({tensor: None for each in attention for tensor, _ in each.operands})
    return [name for name in names if is_float(traced.nodes[name])]
