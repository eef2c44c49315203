"""Modules: copied with all that hangs on them, and replaced by others."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from calib.errors import UserError


def copy_model(model: nn.Module) -> nn.Module:
    """Copy a model with all that hangs on it; UserError when it holds what Python cannot copy.

    Tensors that were computed, as the weight of an old weight norm, are copied without the graph of their gradient.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever the __deepcopy__ and __reduce__ of foreign objects raise
        raise UserError(
            f"the model cannot be copied ({type(error).__name__}: {error}): keep locks, files, generators and threads "
            "out of it"
        ) from error


def writable(model: nn.Module) -> nn.Module:
    """Return a model whose tensors count how often they are written, and take gradients: the model itself, or a copy
    where it was made under `torch.inference_mode`. UserError when it cannot be copied.
    """
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy_model(model) if any(tensor.is_inference() for tensor in tensors) else model


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of the one at `path`."""
    parent_path, _, name = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    with torch.no_grad():
        setattr(parent, name, module)
