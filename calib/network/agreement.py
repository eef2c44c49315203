"""Say whether two outputs of one network are the same but for rounding in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from calib.finite import all_finite, finite_values

TOLERANCE = 1e-3
"""Largest difference, as a share of the output's spread."""
_ULPS = 64
_SMALLEST_SHARE = 0.05
"""A channel whose spread is smaller than this share of the whole output's is compared as if it had this much."""
_STRAYS = 1e-4
_FEW = 8


class Agreement:
    """Compares outputs with what the network gave for a reference batch.

    1. Floats may differ by 1/1000 of the spread (standard deviation) that their channel has in the reference, and by 64
       units in the last place of its largest value. Where that comes from: float32 rounds to 6e-8, and sums in another
       order, or with a BatchNorm folded into the weights, differ by that much times the square root of their length,
       layer after layer: 1e-6 to 1e-5 of the spread in networks of 20 to 150 layers. Rounding to 8 bits costs 1e-2;
       another function costs 1.
    2. NaN and infinity must be at the same places. Integers, truth values and plain Python values must be equal.
    3. One element in 10,000 may be another one altogether: where a network rounds or compares, as an argmax for each
       pixel, a tie may fall to either side. Smaller tensors have no such element.
    4. Types, shapes, names and the nesting of the output must be equal.
    """

    def __init__(self, reference: Any) -> None:
        """`reference` is an output of the network, best of its largest batch; the spread is taken from there."""
        self._scales = [_scales(leaf) if isinstance(leaf, Tensor) else [] for leaf in _leaves(reference)]

    def difference(self, found: Any, expected: Any) -> str | None:
        """Return in words where `found` is not what `expected` is; None when they agree."""
        (ours, our_tree), (theirs, their_tree) = _flat(found), _flat(expected)
        if our_tree != their_tree:
            return f"the output is {_words(our_tree)} and not {_words(their_tree)}"
        for index, ((path, one), (_, two)) in enumerate(zip(ours, theirs, strict=True)):
            name = f"output{pytree.keystr(path)}"
            scales = self._scales[index] if index < len(self._scales) else []
            problem = (
                _between(one, two, scales) if isinstance(one, Tensor) and isinstance(two, Tensor) else _plain(one, two)
            )
            if problem is not None:
                return f"{name} {problem}"
        return None


def _flat(output: Any) -> tuple[list[tuple[Any, Any]], Any]:
    """Return the leaves, each with where it is, and the nesting. Leaves are counted where a class of the output was
    registered without names for its parts, as those of diffusers are.
    """

    def is_leaf(value: Any) -> bool:
        return value is None

    leaves, tree = pytree.tree_flatten(output, is_leaf=is_leaf)
    try:
        return pytree.tree_flatten_with_path(output, is_leaf=is_leaf)[0], tree
    except ValueError:
        return [((pytree.SequenceKey(index),), leaf) for index, leaf in enumerate(leaves)], tree


def _leaves(output: Any) -> list[Any]:
    return [leaf for _, leaf in _flat(output)[0]]


def _plain(one: Any, two: Any) -> str | None:
    if type(one) is not type(two):
        return f"is {_kind(one)} and not {_kind(two)}"
    same = bool(one == two) or (isinstance(one, float) and math.isnan(one) and math.isnan(two))
    return None if same else f"is {one!r} and not {two!r}"


def _between(one: Tensor, two: Tensor, scales: Sequence[Tensor]) -> str | None:
    if (one.dtype, one.shape) != (two.dtype, two.shape):
        return f"is {one.dtype} {list(one.shape)} and not {two.dtype} {list(two.shape)}"
    if one.numel() == 0:
        return None
    if not two.is_floating_point() and not two.is_complex():
        return _strays(one != two, "differs")
    ours, theirs = _real(one), _real(two)
    gap = (ours - theirs).abs()
    if not all_finite(gap):
        finite = torch.isfinite(theirs)
        odd = torch.where(finite, ~torch.isfinite(ours), ~((ours == theirs) | (ours.isnan() & theirs.isnan())))
        problem = _strays(odd, "is not finite at the same places")
        if problem is not None:
            return problem
        gap = torch.where(finite & torch.isfinite(ours), gap, 0.0)
    allowed = _allowed(theirs, scales, torch.finfo(two.dtype).eps)
    largest = float((gap / allowed).max())
    share = largest * TOLERANCE
    return _strays(gap > allowed, f"differs by up to {float(gap.max()):.3g}, {share:.2g} of the spread it has")


def _strays(wrong: Tensor, words: str) -> str | None:
    count = int(wrong.sum())
    return None if count <= int(wrong.numel() * _STRAYS) else f"{words} ({count} of {wrong.numel()} values)"


def _allowed(values: Tensor, scales: Sequence[Tensor], eps: float) -> Tensor:
    """Return the largest difference allowed, for each element or for all of them."""
    present = finite_values(values)
    largest = float(present.abs().max()) if present.numel() else 0.0
    scale = scales[0] if scales else _spread(values)
    for finer in scales[1:]:
        if finer.dim() == values.dim() and all(
            size in (1, actual) for size, actual in zip(finer.shape, values.shape, strict=True)
        ):
            scale = torch.minimum(scale, torch.maximum(finer, _SMALLEST_SHARE * scales[0]))
    return (TOLERANCE * scale + _ULPS * eps * largest).clamp(min=torch.finfo(torch.float32).tiny)


def _scales(leaf: Tensor) -> list[Tensor]:
    """Return the spread of all values, then those by channel and by last dimension, in shapes that fit a batch of any
    size.
    """
    if not leaf.is_floating_point() and not leaf.is_complex():
        return []
    values = _real(leaf)
    found = [_spread(values)]
    if values.dim() >= 2 and values.shape[0] > 1 and values.numel() and all_finite(values):
        for kept in {1, values.dim() - 1}:
            rest = [dim for dim in range(values.dim()) if dim != kept]
            found.append(values.std(dim=rest, keepdim=True, correction=0))
    return found


def _spread(values: Tensor) -> Tensor:
    """Return the standard deviation; of few or equal values the root of their mean square, for there is nothing else to
    go by.
    """
    present = finite_values(values)
    if present.numel() == 0:
        return torch.zeros((), dtype=torch.float64)
    spread = present.std(correction=0)
    return spread if present.numel() >= _FEW and float(spread) > 0 else present.square().mean().sqrt()


def _real(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().cpu().double()


def _words(tree: Any) -> str:
    return str(tree).replace("TreeSpec(", "").replace("\n", " ")[:80]


def _kind(value: Any) -> str:
    return f"a value of type {type(value).__name__}"
