"""CMPQ: a table for each input channel, as wide as its activations are large, and outliers that are kept."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from calib.formats.number_type import NumberType
from calib.formats.quantizers import QuantizedWeight
from calib.formats.table_weights import TableWeight
from calib.formats.tables import Tables, changed_columns, kept_weights
from calib.rounding.base import Moments
from calib.rounding.own import rounds

_LARGE_CHANNELS = 0.1
"""Share of the channels, those with the largest activations, whose largest weights are kept."""
_PASSES = 30
_AT_ONCE = 2**24
"""Distances that are in memory at a time: of a head for 100,000 words, every channel has millions."""


@rounds(Tables)
def round_tables(
    weight: Tensor, moments: Moments, grid: NumberType, block: int | None, scale_floor: Tensor
) -> QuantizedWeight:
    """Give the channels with large activations a bit more, cluster each channel's weights,
    and keep two kinds of outliers.

    CMPQ (arXiv 2410.13056). Its code was not published and its rules were not found in full; these are ours where the
    abstract is silent. a_j is the root mean square of input j. Of an average b0 + f the share f of the channels with
    the largest a_j has b0 + 1 bits, the rest b0; of a whole average a tenth has b + 1, a tenth with the smallest a_j
    b - 1. A quarter of a percent of the weights is kept before clustering: the largest of the tenth of the channels
    with the largest a_j. As many are kept after it, those with the largest |w - q(w)| a_j, and what is left is
    clustered again. Clusters are those of k-means on a line from quantiles, thirty passes.
    """
    del block, scale_floor
    size = (moments.diagonal.repeat_interleave(len(weight) // len(moments.matrix), dim=0)).clamp(min=0).sqrt()
    activations = size.mean(dim=0)
    widths = widths_of_channels(activations, grid.bits)
    count = kept_weights(weight.numel()) // 2
    large = activations.argsort(descending=True)[: max(math.ceil(_LARGE_CHANNELS * len(activations)), 1)]
    inside = torch.full_like(weight, -1.0)
    inside[:, large] = weight[:, large].abs()
    kept = torch.zeros_like(weight, dtype=torch.bool)
    kept.view(-1)[inside.flatten().topk(min(count, len(weight) * len(large))).indices] = True
    _, rounded = _clustered(weight, widths, kept)
    error = ((rounded - weight).abs() * size).masked_fill(kept, -1.0)
    kept.view(-1)[error.flatten().topk(kept_weights(weight.numel()) - int(kept.sum())).indices] = True
    tables, rounded = _clustered(weight, widths, kept)
    places = _nearest(weight.T, tables).T
    where = kept.flatten().nonzero().flatten()
    kept_as = weight.flatten()[where].bfloat16().float()
    return TableWeight(
        grid, places.byte(), tables.nan_to_num(posinf=0.0), widths=tuple(widths.tolist()), kept=where, kept_as=kept_as
    )


def widths_of_channels(activations: Tensor, average: float) -> Tensor:
    """Return the bits of each channel, `[in]`; their sum is the average times the channels, rounded down."""
    count = len(activations)
    widths = torch.full((count,), math.floor(average), dtype=torch.int64)
    order = activations.argsort(descending=True, stable=True).cpu()
    more, less = changed_columns(count, average)
    widths[order[:more]] += 1
    widths[order[count - less :]] -= 1
    return widths


def _clustered(weight: Tensor, widths: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return tables `[in, 2^widest]`, infinite where a channel has fewer entries, and the weight rounded to them;
    `kept` weights have no part in the clusters.
    """
    tables = torch.full((weight.shape[1], 2 ** int(widths.max())), torch.inf, device=weight.device)
    for width in widths.unique().tolist():
        columns = (widths == width).nonzero().flatten()
        tables[columns, : 2**width] = _line_clusters(weight[:, columns].T, ~kept[:, columns].T, 2**width)
    places = _nearest(weight.T, tables)
    return tables, torch.take_along_dim(tables, places, dim=1).T


def _line_clusters(rows: Tensor, counted: Tensor, clusters: int) -> Tensor:
    """Return `[rows, clusters]` centres of the counted numbers of each row `[rows, n]`: Lloyd's passes on a line, as
    numbers that 16 bits hold.
    """
    ordered = rows.masked_fill(~counted, torch.inf).sort(dim=1).values
    known = counted.sum(dim=1, keepdim=True).clamp(min=1)
    shares = (torch.arange(clusters, device=rows.device) + 0.5) / clusters
    centres = ordered.gather(1, (shares * known).long().clamp(max=rows.shape[1] - 1)).nan_to_num(posinf=0.0)
    for _ in range(_PASSES):
        places = _nearest(rows, centres)
        totals = torch.zeros_like(centres).scatter_add_(1, places, rows * counted)
        members = torch.zeros_like(centres).scatter_add_(1, places, counted.float())
        centres = torch.where(members > 0, totals / members.clamp(min=1), centres)
    return centres.bfloat16().float()


def _nearest(rows: Tensor, tables: Tensor) -> Tensor:
    """Return the place of the nearest number of each row's table `[rows, entries]`
    for each of its numbers `[rows, n]`.
    """
    few = max(_AT_ONCE // (rows.shape[1] * tables.shape[1]), 1)
    pairs = zip(rows.split(few), tables.split(few), strict=True)
    return torch.cat([(part[:, :, None] - own[:, None]).abs().argmin(dim=2) for part, own in pairs])
