"""What the user's own module says, and whether it says one thing at all."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Oracle:
    """Output tensors of the eager module for every batch of a test, None for a batch that it does not take.

    `unstable` says why the module has no output to agree with: it answers differently to equal inputs.
    """

    outputs: list[list[Tensor] | None]
    unstable: str | None


def ask(module: nn.Module, batches: Sequence[Inputs]) -> Oracle:
    """Run fresh copies of `module` in evaluation mode, one for each batch, and one copy on all batches, forth and back.

    A module that keeps state or draws numbers gives itself away: its second answer to a batch is another one than that
    of a fresh copy.
    """
    fresh = [_answer(copy.deepcopy(module).eval(), batch) for batch in batches]
    used = copy.deepcopy(module).eval()
    order = [*range(len(batches)), *reversed(range(len(batches)))]
    for index in order:
        if not _same(fresh[index], _answer(used, batches[index])):
            return Oracle(fresh, f"batch {index} gives other values the next time")
    return Oracle(fresh, None)


def tensors(output: Any) -> list[Tensor]:
    """The tensors in what a `forward` returned, in order."""
    return [leaf.detach() for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def own(batch: Inputs) -> Inputs:
    """Copies that a module may change."""
    return tuple(tensor.detach().clone(memory_format=torch.preserve_format) for tensor in batch)


def _answer(module: nn.Module, batch: Inputs) -> list[Tensor] | None:
    with torch.no_grad():
        try:
            return [tensor.clone() for tensor in tensors(module(*own(batch)))]
        except Exception:  # noqa: BLE001 - the module may raise whatever it likes for a size it does not take
            return None


def _same(one: list[Tensor] | None, two: list[Tensor] | None) -> bool:
    if one is None or two is None:
        return one is two
    return len(one) == len(two) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
        for a, b in zip(one, two, strict=True)
    )
