"""Measure the activations once, and round each weight once for every representation that is asked for."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from calib.choices import ObserverName, RoundingName
from calib.declared import check_declared
from calib.errors import UserError
from calib.formats.format import Format
from calib.formats.number_type import NumberType
from calib.formats.quantizers import SCALE_OF_ZEROS, ActivationQuantizer, QuantizedWeight, Scheme, quantizer_from_range
from calib.network.clips import is_clip
from calib.network.graph import TracedModel
from calib.network.nodes import operator_name
from calib.network.residual import residual_adds
from calib.network.units import Unit
from calib.observers import Observed, observer_from_name
from calib.rounding import Moments, rounding_from_name
from calib.task import Batch

_ROWS_PER_UNIT = 40_000
_BIAS_LIMIT = 2**30
_LARGEST_TO_SQUARE = 2.0**50


@dataclass(frozen=True)
class CalibrationSettings:
    """Names of the observer and the rounding method, and the activation scheme of the target."""

    observer: ObserverName = "mse"
    rounding: RoundingName = "gptq"
    scheme: Scheme = "affine"

    def __post_init__(self) -> None:
        check_declared(self)


class Calibration:
    """Ranges of activations and rounded weights, each worked out on first use and then kept.

    Every layer is rounded on its *float* inputs, so that a rounded weight does not depend on the formats of other
    layers and all of them can be combined freely. A pickled copy holds what was worked out before, and nothing to work
    out more with: call `prepare` and `prepare_quantizers` first.
    """

    def __init__(
        self, traced: TracedModel, units: Sequence[Unit], batches: Sequence[Batch], settings: CalibrationSettings
    ) -> None:
        """Run the calibration batches through the float model once."""
        self.traced = traced
        self.settings = settings
        self._observer = observer_from_name(settings.observer)
        self._round = rounding_from_name(settings.rounding)
        self._observed: dict[str, Observed] = {name: Observed() for name in _observed_tensors(traced, units)}
        self._moments = _collect_moments(traced, units, batches, self._observed)
        self._quantizers: dict[tuple[str, NumberType, Scheme], ActivationQuantizer] = {}
        self._weights: dict[tuple[str, str], QuantizedWeight] = {}

    def quantizer(self, tensor: str, grid: NumberType, scheme: Scheme) -> ActivationQuantizer:
        """Return the quantiser of one tensor of the graph."""
        key = (tensor, grid, scheme)
        if key not in self._quantizers:
            low, high = self._observer(self._observed[tensor], grid, scheme)
            self._quantizers[key] = quantizer_from_range(low, high, grid, scheme)
        return self._quantizers[key]

    def weight(self, unit: Unit, chosen: Format) -> QuantizedWeight:
        """Return one unit's weight in the number type of a format, in the layout of the float weight."""
        key = (unit.path, chosen.weight_key)
        if key not in self._weights:
            weight = self.traced.state[unit.weight].float()
            matrix = weight.reshape(unit.out_features, -1)
            # what is only looked up sees no inputs: every error counts alike
            method = self._round if unit.calls else rounding_from_name("nearest")
            rounded = method(
                matrix, self._moments[unit.path], chosen.weight, chosen.weight_block, self._scale_floor(unit, chosen)
            )
            self._weights[key] = QuantizedWeight(
                rounded.type, rounded.values.reshape(weight.shape), rounded.scale.contiguous(), rounded.block
            )
        return self._weights[key]

    def prepare(
        self, units: Sequence[Unit], formats: Mapping[str, Sequence[Format]], advance: Callable[[], None]
    ) -> None:
        """Round every weight that the search may need; `formats` is by unit path, `advance` is called after each
        weight.
        """
        for unit in units:
            for chosen in formats[unit.path]:
                if not chosen.is_float:
                    self.weight(unit, chosen)
                advance()

    def prepare_quantizers(self, tensors: Iterable[str] | None, grids: Iterable[NumberType], scheme: Scheme) -> None:
        """Work out the ranges of `tensors`, of all that were observed when it is None, for these types."""
        for grid in grids:
            for tensor in self._observed if tensors is None else tensors:
                self.quantizer(tensor, grid, scheme)

    def largest(self, tensor: str) -> float:
        """Return the largest absolute value that a tensor had on the calibration data."""
        return max(-self._observed[tensor].low, self._observed[tensor].high)

    def digest(self) -> str:
        """Return a hash of the rounded weights and of what was seen of the activations, from which the quantisers
        follow.
        """
        found = hashlib.sha256(repr(self.settings).encode())
        for key, weight in sorted(self._weights.items()):
            found.update(repr((key, weight.bits, weight.block)).encode())
            found.update(weight.value_bytes() + weight.scale.cpu().numpy().tobytes())
        for name, seen in sorted(self._observed.items()):
            found.update(f"{name} {seen.low.hex()} {seen.high.hex()}".encode())
            for part in seen.parts:
                found.update(part.numpy().tobytes())
        return found.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("traced", "settings", "_quantizers", "_weights")
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
        return self.traced.state[unit.bias].abs().float() / (smallest * _BIAS_LIMIT)


def _observed_tensors(traced: TracedModel, units: Sequence[Unit]) -> list[str]:
    """Inputs and results of all units, results behind a ReLU or clamp as well, sums, and the skips of residual adds."""
    names: dict[str, None] = {}
    for unit in units:
        names.update(dict.fromkeys(unit.inputs))
        names.update(dict.fromkeys(unit.calls))
    names.update({node.name: None for node in traced.graph.nodes if operator_name(node) == "add"})
    for name in list(names):
        names.update({user.name: None for user in traced.consumers(name) if is_clip(user)})
    names.update({add.grid: None for add in residual_adds(traced, units)})
    return [name for name in names if _is_float_tensor(traced, name)]


def _is_float_tensor(traced: TracedModel, name: str) -> bool:
    value = traced.nodes[name].meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _collect_moments(
    traced: TracedModel, units: Sequence[Unit], batches: Sequence[Batch], observed: Mapping[str, Observed]
) -> dict[str, Moments]:
    by_tensor: dict[str, list[tuple[Unit, str]]] = {}
    for unit in units:
        for call, tensor in zip(unit.calls, unit.inputs, strict=True):
            by_tensor.setdefault(tensor, []).append((unit, call))
    totals: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    most = {unit.path: math.ceil(_ROWS_PER_UNIT / (len(batches) * len(unit.calls))) for unit in units if unit.calls}

    def observe(name: str, tensor: Tensor) -> None:
        if name in observed:
            observed[name].add(tensor)
        for unit, call in by_tensor.get(name, ()):
            patches = _squarable(_patches(traced, unit, call, tensor, most[unit.path]))
            product = torch.einsum("gnk,gnl->gkl", patches, patches)
            totals[unit.path] = totals[unit.path] + product if unit.path in totals else product
            rows[unit.path] = rows.get(unit.path, 0) + patches.shape[1]

    for batch in batches:
        traced.run(batch.inputs, observe=observe)
    for path, total in totals.items():
        if not bool(torch.isfinite(total).all()):
            raise UserError(
                f"the input of {path} holds NaN or infinity on the calibration data: no integers stand for them"
            )
    looked_up = {unit.path: Moments(torch.eye(unit.in_features)[None]) for unit in units if not unit.calls}
    return looked_up | {path: Moments.of(total / rows[path]) for path, total in totals.items()}


def _squarable(patches: Tensor) -> Tensor:
    """Return numbers whose squares and their sums are no zeros or infinities: in float64 where float32 has none."""
    largest = float(patches.abs().max()) if patches.numel() else 0.0
    return patches if largest == 0 or 1 / _LARGEST_TO_SQUARE < largest < _LARGEST_TO_SQUARE else patches.double()


def _patches(traced: TracedModel, unit: Unit, call: str, tensor: Tensor, most: int) -> Tensor:
    """Return `[groups, n, k]`: what one call multiplies by its weight, at most `most` evenly spaced rows of it."""
    node = traced.nodes[call]
    if operator_name(node) == "linear":
        rows = tensor.reshape(1, -1, tensor.shape[-1])
        return rows[:, :: max(rows.shape[1] // most, 1)].float()
    arguments: tuple[Any, ...] = (*node.args, *_CONVOLUTION_DEFAULTS[len(node.args) :])
    _, _, _, stride, padding, dilation, groups = arguments
    dims = len(unit.weight_shape) - 2
    kernel = list(unit.weight_shape[2:])
    per_image = max(most // max(tensor.shape[0], 1), 1)
    stride, dilation = _per_dim(stride, dims), _per_dim(dilation, dims)
    if isinstance(padding, str):  # only statistics are taken here: an odd total may lose its last column
        padding = [d * (k - 1) // 2 if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    padding = _per_dim(padding, dims)
    if dims == 1:  # unfold knows images only: a sequence is an image one pixel high
        tensor, kernel = tensor[:, :, None], [1, *kernel]
        stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
    columns = _gathered(tensor.float(), kernel, stride, padding, dilation, per_image)
    batch, length, kept = columns.shape
    grouped = columns.reshape(batch, groups, length // groups, kept)
    return grouped.permute(1, 0, 3, 2).reshape(groups, batch * kept, length // groups)


def _gathered(
    images: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    most: int,
) -> Tensor:
    """Return `[n, channels * kernel, positions]`, as F.unfold does but of evenly spaced positions only: all of them
    would be many times more.
    """
    padded = F.pad(images, (padding[1], padding[1], padding[0], padding[0]))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    height, width = ((size - r) // s + 1 for size, r, s in zip(padded.shape[2:], reach, stride, strict=True))
    chosen = torch.arange(0, height * width, max(height * width // most, 1) | 1, device=images.device)
    rows = (chosen // width * stride[0])[:, None] + torch.arange(kernel[0], device=images.device) * dilation[0]
    columns = (chosen % width * stride[1])[:, None] + torch.arange(kernel[1], device=images.device) * dilation[1]
    patches = padded[:, :, rows[:, :, None], columns[:, None, :]]
    return patches.permute(0, 1, 3, 4, 2).flatten(1, 3)


_CONVOLUTION_DEFAULTS = (None, None, None, [1], [0], [1], 1)
"""Default arguments of aten.conv1d and aten.conv2d: input, weight, bias, stride, padding, dilation, groups."""


def _per_dim(value: Sequence[int], dims: int) -> list[int]:
    return list(value) * dims if len(value) == 1 else list(value)
