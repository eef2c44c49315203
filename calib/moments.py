"""Second moments of the inputs of layers, for as many layers at a time as memory allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from calib.data import bytes_of
from calib.errors import UserError
from calib.finite import all_finite
from calib.free_memory import free_bytes
from calib.heap import Gaps
from calib.network.execution import Observe
from calib.network.graph import TracedModel
from calib.network.nodes import operator_name
from calib.network.units import Unit
from calib.rounding import Moments
from calib.strides import stride_over
from calib.task import Batch

_ROWS_PER_UNIT = 40_000
_LARGEST_TO_SQUARE = 2.0**50
_SHARE_OF_MEMORY = 0.75
_WORKING_COPIES = 8
"""Matrices as large as a layer's moments that its rounding makes besides them, and as large as its weight; measured
with GPTQ.
"""


class LayerMoments:
    """Moments of the inputs of each unit, over the same rows whichever units are collected together.

    `parts` are the units whose moments are in memory at the same time: all of them where they fit. A part is
    collected by one run of the float model through the batches, when the moments of one of its units are asked for that
    are not in memory. Those of other parts are dropped then. A unit whose rounding does not fit is in no part: it may
    stay in float.
    """

    def __init__(
        self, traced: TracedModel, units: Sequence[Unit], batches: Sequence[Batch], memory_mb: float | None
    ) -> None:
        """Collect nothing yet. Without `memory_mb` it is most of the memory that is free now."""
        self._traced, self._batches = traced, batches
        self._memory_mb = _SHARE_OF_MEMORY * free_bytes() / 2**20 if memory_mb is None else memory_mb
        self._by_path = {unit.path: unit for unit in units}
        takes = {unit: self._takes(unit) for unit in units if unit.calls}
        self._alone = {unit.path: _needed([memory]) for unit, memory in takes.items()}
        self.parts = _parts_within(takes, self._memory_mb)
        self._held: dict[str, Moments] = {}

    def __getitem__(self, path: str) -> Moments:
        unit = self._by_path[path]
        if not unit.calls:  # what is only looked up sees no inputs
            return Moments(torch.eye(unit.in_features)[None])
        if path not in self._held:
            part = next((part for part in self.parts if unit in part), None)
            if part is None:
                raise UserError(
                    f"rounding {path} takes {self._alone[path]:.3g} MB with the second moments of its inputs, more "
                    f"than the {self._memory_mb:.3g} MB that it may: raise --memory-limit, or pin the layer to float"
                )
            self.collect(part)
        return self._held[path]

    def drop(self, path: str) -> None:
        """Free the moments of a unit. They are collected again when they are asked for again."""
        self._held.pop(path, None)

    def collect(self, units: Sequence[Unit], watch: Observe | None = None) -> None:
        """Run the batches through the float model; `watch` sees every tensor. UserError where an input of a layer holds
        NaN or infinity.
        """
        self._held.clear()
        by_tensor: dict[str, list[tuple[Unit, str]]] = {}
        for unit in units:
            for call, tensor in zip(unit.calls, unit.inputs, strict=True):
                by_tensor.setdefault(tensor, []).append((unit, call))
        totals: dict[str, Tensor] = {}
        rows: dict[str, int] = {}
        most = {unit.path: math.ceil(_ROWS_PER_UNIT / (len(self._batches) * len(unit.calls))) for unit in units}

        def observe(name: str, tensor: Tensor) -> None:
            if watch is not None:
                watch(name, tensor)
            for unit, call in by_tensor.get(name, ()):
                patches = _squarable(_patches(self._traced, unit, call, tensor, most[unit.path]))
                _add(totals, unit.path, torch.einsum("gnk,gnl->gkl", patches, patches))
                rows[unit.path] = rows.get(unit.path, 0) + patches.shape[1]

        gaps = Gaps()
        for batch in self._batches:
            self._traced.run(batch.inputs, observe=observe)
            gaps.close(bytes_of(batch))
        for path, count in rows.items():
            total = totals.pop(path)
            if not all_finite(total):
                raise UserError(
                    f"the input of {path} holds NaN or infinity on the calibration data: no integers stand for them"
                )
            self._held[path] = Moments.of(total.div_(count))

    def _takes(self, unit: Unit) -> _Memory:
        call = self._traced.nodes[unit.calls[0]]
        groups = 1 if operator_name(call) == "linear" else _convolution_arguments(call)[6]
        moments = groups * unit.in_features**2 * 4 / 2**20
        return _Memory(moments, _WORKING_COPIES * (moments + math.prod(unit.weight_shape) * 4 / 2**20))


class _Memory(NamedTuple):
    """What the moments of a unit take, `[groups, k, k]` in float32, and what its rounding takes besides, in MB."""

    held: float
    working: float


def _add(totals: dict[str, Tensor], path: str, product: Tensor) -> None:
    """Add to a sum, in its place where the type stays: float64 where one of the two is."""
    total = totals.get(path)
    if total is not None and total.dtype == torch.promote_types(total.dtype, product.dtype):
        total.add_(product)
    else:
        totals[path] = product if total is None else total + product


def _parts_within(takes: Mapping[Unit, _Memory], memory_mb: float) -> list[list[Unit]]:
    """Return the units that fit, in parts, in their order, one part at least. Besides the moments of a part there is
    room for the rounding of one layer of it.
    """
    parts: list[list[Unit]] = [[]]
    for unit, memory in takes.items():
        if _needed([memory]) > memory_mb:
            continue
        if _needed([*(takes[each] for each in parts[-1]), memory]) > memory_mb:
            parts.append([])
        parts[-1].append(unit)
    return parts


def _needed(part: Sequence[_Memory]) -> float:
    return sum(each.held for each in part) + max(each.working for each in part)


def _squarable(patches: Tensor) -> Tensor:
    """Return numbers whose squares and their sums are no zeros or infinities: in float64 where float32 has none."""
    largest = float(patches.abs().max()) if patches.numel() else 0.0
    return patches if largest == 0 or 1 / _LARGEST_TO_SQUARE < largest < _LARGEST_TO_SQUARE else patches.double()


def _patches(traced: TracedModel, unit: Unit, call: str, tensor: Tensor, most: int) -> Tensor:
    """Return `[groups, n, k]`: what one call multiplies by its weight, at most `most` evenly spaced rows of it."""
    node = traced.nodes[call]
    if operator_name(node) == "linear":
        rows = tensor.reshape(1, -1, tensor.shape[-1])
        return rows[:, :: stride_over(rows.shape[1] // most, math.prod(tensor.shape[1:-1]))].float()
    _, _, _, stride, padding, dilation, groups = _convolution_arguments(node)
    dims = len(unit.weight_shape) - 2
    kernel = list(unit.weight_shape[2:])
    per_image = max(most // max(tensor.shape[0], 1), 1)
    stride, dilation = _per_dim(stride, dims), _per_dim(dilation, dims)
    if isinstance(padding, str):  # only statistics are taken here: an odd total may lose its last column
        padding = [d * (k - 1) // 2 if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    padding = _per_dim(padding, dims)
    columns = _gathered(tensor.float(), kernel, stride, padding, dilation, per_image)
    batch, length, kept = columns.shape
    grouped = columns.reshape(batch, groups, length // groups, kept)
    return grouped.permute(1, 0, 3, 2).reshape(groups, batch * kept, length // groups)


def _gathered(
    tensor: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    most: int,
) -> Tensor:
    """Return `[n, channels * kernel, positions]`, as F.unfold does but of evenly spaced positions only: all of them
    would be many times more. `tensor` is a sequence, an image or a volume for each sample, `[n, channels, *sizes]`.
    """
    padded = F.pad(tensor, [each for each in reversed(padding) for _ in range(2)])
    sizes = padded.shape[2:]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    counts = [(size - r) // s + 1 for size, r, s in zip(sizes, reach, stride, strict=True)]
    positions = math.prod(counts)
    apart = stride_over(max(positions // most, 1) | 1, math.prod(counts[1:]))
    chosen = torch.arange(0, positions, apart, device=tensor.device)
    first, within = torch.zeros_like(chosen), torch.zeros(1, dtype=chosen.dtype, device=tensor.device)
    across, before = 1, 1  # elements, and positions, between neighbours along an axis
    for size, count, k, s, d in reversed(list(zip(sizes, counts, kernel, stride, dilation, strict=True))):
        first += chosen // before % count * (s * across)
        taps = torch.arange(k, device=tensor.device) * (d * across)
        within = (taps[:, None] + within).flatten()
        across, before = across * size, before * count
    # one index into whole samples: one for each axis takes three times as long
    patches = padded.flatten(2).index_select(2, (within[:, None] + first).flatten())
    return patches.reshape(len(tensor), -1, len(chosen))


def _convolution_arguments(node: fx.Node) -> tuple[Any, ...]:
    return (*node.args, *_CONVOLUTION_DEFAULTS[len(node.args) :])


_CONVOLUTION_DEFAULTS = (None, None, None, [1], [0], [1], 1)
"""Default arguments of aten.conv1d, conv2d and conv3d: input, weight, bias, stride, padding, dilation, groups."""


def _per_dim(value: Sequence[int], dims: int) -> list[int]:
    return list(value) * dims if len(value) == 1 else list(value)
