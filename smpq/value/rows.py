"""Rows of a batch's target: what of it belongs to some of the samples."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MOST_COLUMNS = 8
"""No target has more columns than that: a longer list or tuple is one of samples."""


def has_rows(target: Any, count: int) -> bool:
    """Whether a target has a row for each of `count` samples: None, a tensor or an array `[count, ...]`, a list or
    tuple of so many, a dict of such.

    A short list or tuple may hold columns as well. It does not count where one of its parts has `count` rows itself,
    such as `(boxes, labels)` of two samples.
    """
    if target is None:
        return True
    if isinstance(target, (Tensor, np.ndarray)):
        return target.ndim > 0 and len(target) == count
    if type(target) is dict:
        return all(has_rows(column, count) for column in target.values())
    if type(target) not in (list, tuple) or len(target) != count:
        return False
    return count > _MOST_COLUMNS or not any(part is not None and has_rows(part, count) for part in target)


def rows_of(target: Any, rows: slice) -> Any:
    """Return some rows of a target that has them."""
    if type(target) is dict:
        return {name: rows_of(column, rows) for name, column in target.items()}
    return None if target is None else target[rows]


def joined(targets: Sequence[Any]) -> Any:
    """Return the rows of several targets of one kind as one target. ValueError, TypeError, KeyError or RuntimeError
    where they do not fit.
    """
    first = targets[0]
    if any(type(target) is not type(first) for target in targets):
        raise TypeError("targets of several types")
    if first is None:
        return None
    if isinstance(first, dict):
        return {name: joined([target[name] for target in targets]) for name in first}
    if isinstance(first, Tensor):
        return torch.cat(list(targets))
    if isinstance(first, np.ndarray):
        return np.concatenate(targets)
    return type(first)(chain.from_iterable(targets))
