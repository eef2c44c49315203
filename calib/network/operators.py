"""What torch makes of single operators when it removes in-place ones and takes nothing else apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

_ATEN = torch.ops.aten


class UnsureError(Exception):
    """Nothing but torch's own trace says what becomes of the program."""


def _norm(*args: Any) -> Any:
    data, weight, bias, mean, variance, training, momentum, eps = args[:8]
    if training or mean is None or variance is None:
        raise UnsureError
    found = _ATEN._native_batch_norm_legit_no_training.default(  # noqa: SLF001
        data, weight, bias, mean, variance, momentum, eps
    )
    return found[0]


def _no_dropout(data: Tensor, _: float, train: bool) -> Tensor:
    if train:
        raise UnsureError
    return data.clone()


REWRITTEN: dict[Any, Callable[..., Any]] = {
    _ATEN.batch_norm.default: _norm,
    _ATEN.dropout.default: _no_dropout,
    _ATEN.lift_fresh_copy.default: torch.clone,
}
"""Operators that torch takes apart in another way than their fake tensors do."""


RETRACED = {_ATEN.item.default, _ATEN.alias.default}
"""Operators that torch's own way treats by what they are given."""


def is_taken_apart(target: Any) -> bool:
    """Whether torch takes an operator apart although it is asked to take nothing apart: what is made of others and may
    hand on the memory of its input.
    """
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(  # noqa: SLF001
        target.name(), "CompositeImplicitAutograd"
    )
    unsafe = may_alias(target) or torch.Tag.maybe_aliasing_or_mutating in target.tags
    return composite and unsafe


def may_alias(target: Any) -> bool:
    """Whether a result may lie in the memory of an argument, by the operator's schema."""
    return any(argument.alias_info is not None for argument in target._schema.arguments)  # noqa: SLF001 - no other way


@cache
def functional_operator(target: Any) -> Any:
    """Return the operator that computes what another one writes into its first operand; None where there is none."""
    name, overload = target.overloadpacket.__name__, target._overloadname  # noqa: SLF001 - no other way
    found = getattr(getattr(_ATEN, name[:-1], None), overload, None) if name.endswith("_") else None
    if found is None or found._schema.is_mutable or may_alias(found) or is_taken_apart(found):  # noqa: SLF001
        return None
    ours, theirs = ([argument.name for argument in each._schema.arguments] for each in (found, target))  # noqa: SLF001
    written = [argument.name for argument in target._schema.arguments if argument.is_write]  # noqa: SLF001
    return found if ours == theirs and written == ours[:1] else None
