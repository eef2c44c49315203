"""Batches as users have them, and a model that takes what is in them by position."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from calib.errors import UserError
from calib.task import Batch

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Arguments:
    """What a model is called with, as the first batch says: batches of other arguments are refused."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        """The model, which takes the inputs of a batch by position."""
        self._parameters: Mapping[str, inspect.Parameter] = {}
        with suppress(ValueError):  # as of a module that torch.jit has traced
            self._parameters = inspect.signature(model.forward).parameters
        self._names: tuple[str, ...] | None = None

    def names(self, inputs: int) -> list[str]:
        """Return what `forward` calls so many inputs of a batch."""
        known = self._names or [name for name, each in self._parameters.items() if each.kind in _BY_POSITION]
        return [*known, *(f"input_{number}" for number in range(len(known), inputs))][:inputs]

    def batches(self, batches: Iterable[Any], what: str) -> Iterator[Batch]:
        """Yield batches as the search takes them; there may be none. UserError for what is none.

        A tensor, or an array, is the only input. The last of a tuple or list is the target, what stands before it the
        inputs. Of a dict the model gets the arguments of its `forward` by name; what is left is the target, alone or as
        a dict.
        """
        if isinstance(batches, (Tensor, np.ndarray)):
            raise UserError(f"{what} is one array, whose rows would be batches: give a list, as list(x.split(64))")
        if isinstance(batches, Dataset) and not hasattr(batches, "__iter__"):
            raise UserError(f"{what} is a Dataset, which gives samples: give a DataLoader of it, which makes batches")
        try:
            for batch in batches:
                found = self._named(batch, what) if isinstance(batch, Mapping) else _batch(as_tensor(batch))
                self._check_count(len(found.inputs), what)
                yield Batch(tuple(map(as_tensor, found.inputs)), found.target)
        except TypeError as error:
            raise UserError(
                f"{what} cannot be used as batches ({error}): give a list of them, or a DataLoader"
            ) from error

    def _check_count(self, inputs: int, what: str) -> None:
        kinds = [each.kind for each in self._parameters.values()]
        most = sum(kind in _BY_POSITION for kind in kinds)
        if self._names is None and kinds and inputs > most and inspect.Parameter.VAR_POSITIONAL not in kinds:
            raise UserError(
                f"{what} has a batch with {inputs} inputs, which are all but the last of a tuple, and forward() takes "
                f"{most}: give (inputs, target), or dicts"
            )

    def _named(self, batch: Mapping[Any, Any], what: str) -> Batch:
        names = tuple(name for name in self._parameters if name in batch)
        if not names:
            raise UserError(
                f"{what} has a batch of {', '.join(map(str, batch))}, and forward() takes "
                f"{', '.join(self._parameters)}: name the inputs as forward() does"
            )
        if self._names is None:
            self._names, self.model = names, self._called_by_name(names)
        elif names != self._names:
            raise UserError(
                f"{what} has a batch with the arguments {', '.join(names)}, and the first of all has "
                f"{', '.join(self._names)}: each batch needs the same"
            )
        rest = {name: value for name, value in batch.items() if name not in names}
        target = next(iter(rest.values())) if len(rest) == 1 else rest or None
        return Batch(tuple(batch[name] for name in names), target)

    def _called_by_name(self, names: tuple[str, ...]) -> nn.Module:
        """Return the model itself where these are its first arguments, else a copy that shares all it has."""
        first = list(self._parameters.values())[: len(names)]
        if [each.name for each in first] == list(names) and all(each.kind in _BY_POSITION for each in first):
            return self.model
        called, forward = copy.copy(self.model), self.model.forward
        if isinstance(forward, MethodType) and forward.__self__ is self.model:  # a copy of the copy shall call itself
            forward = MethodType(forward.__func__, called)
        vars(called).update(forward_by_name=forward, names_by_position=names, forward=MethodType(_by_name, called))
        return called


def _by_name(model: Any, *inputs: Any) -> Any:
    return model.forward_by_name(**dict(zip(model.names_by_position, inputs, strict=True)))


def as_tensor(given: Any) -> Any:
    """Return an array as a tensor, which shares its memory where torch can: not one that is flipped, or of the other
    byte order. Anything else stays as it is.
    """
    if not isinstance(given, np.ndarray):
        return given
    if min(given.strides, default=0) < 0 or not given.dtype.isnative:
        given = given.astype(given.dtype.newbyteorder("="))
    return torch.as_tensor(given)


def _batch(batch: Any) -> Batch:
    if isinstance(batch, Batch):
        return batch
    if isinstance(batch, Tensor):
        return Batch((batch,), None)
    if isinstance(batch, Sequence) and not isinstance(batch, str) and batch:
        *inputs, target = batch
        if not inputs:
            return Batch((target,), None)
        first = inputs[0]
        nested = len(inputs) == 1 and isinstance(first, Sequence) and not isinstance(first, Tensor)
        return Batch(tuple(first) if nested else tuple(inputs), target)
    raise TypeError(f"a batch is of type {type(batch).__name__}")
