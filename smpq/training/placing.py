"""Training on another device than the CPU: the graph, batches and results on their way there and back."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from calib.network.graph import TracedModel
from calib.task import Batch

CPU = "cpu"


def graph_on(traced: TracedModel, device: str) -> TracedModel:
    """Return a copy whose tensors are on `device` and that makes its constants there; on the CPU the graph itself."""
    if device == CPU:
        return traced
    state = traced.__getstate__()
    copy = object.__new__(TracedModel)
    copy.__setstate__({**state, "state": {name: tensor.to(device) for name, tensor in traced.state.items()}})
    return copy


def batch_on(batch: Batch, device: str) -> Batch:
    """Return a batch whose inputs, and the tensors of whose target, are on `device`."""
    inputs, target = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), (tuple(batch.inputs), batch.target))
    return Batch(inputs, target)


def repeatable_on(device: str) -> AbstractContextManager[None]:
    """Make convolutions on a GPU repeatable and as exact as those of a CPU: TF32 has ten bits of mantissa."""
    if torch.device(device).type != "cuda":
        return nullcontext()
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags
