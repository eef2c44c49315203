"""Which modules and tensors an engine can be made of: those of other kinds are told before the work."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from calib.errors import UserError

TYPES = frozenset(
    {
        torch.float16, torch.float32, torch.float64, torch.bool, torch.int8, torch.int16, torch.int32, torch.int64,
        torch.uint8, torch.uint16, torch.uint32, torch.uint64,
    }
)  # fmt: skip
"""Types of inputs and outputs: engines take and give arrays of NumPy, which has no others."""


def check_kind(model: nn.Module) -> None:
    """Raise UserError for a module without a forward() that can be traced, and for a default type that is not float32.

    What a model, its metric and the search make without a type would be of that type, and not of the weights' own.
    """
    if torch.get_default_dtype() != torch.float32:
        raise UserError(
            f"torch's default type is {_name(torch.get_default_dtype())}, and models are float32: call "
            "torch.set_default_dtype(torch.float32) before"
        )
    for path, part in model.named_modules():
        # torch.export traces functions of torch.jit, and puts its own train(), which raises, in the place of the method
        scripted = isinstance(part, torch.jit.ScriptModule) and (not path or bool(part.state_dict()))
        if scripted or (isinstance(part, fx.GraphModule) and "train" in vars(part)):
            origin, what = (
                "torch.jit" if scripted else "torch.export",
                f"{path!r} of the model" if path else "the model",
            )
            raise UserError(f"{what} comes from {origin}: hand over the torch.nn.Module that it was made of")


def check_tensor(tensor: Tensor, what: str) -> None:
    """Raise UserError, which starts with `what`, unless a tensor (any shape) is dense and of one of `TYPES`."""
    check_dense(tensor, what)
    if tensor.dtype in TYPES:
        return
    instead = "torch.view_as_real(tensor)" if tensor.is_complex() else "tensor.float()"
    raise UserError(f"{what} is {_name(tensor.dtype)}, a type that engines neither take nor give: make it {instead}")


def check_dense(tensor: Tensor, what: str) -> None:
    """Raise UserError, which starts with `what`, for a sparse tensor."""
    if tensor.layout != torch.strided:
        raise UserError(f"{what} is a sparse tensor, which engines do not know: make it tensor.to_dense()")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
