"""Checks of what a task hands over: batches and models, with one clear message for each thing that can be wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from calib.accepted import check_dense, check_kind, check_tensor
from calib.errors import UserError
from calib.finite import all_finite
from calib.heap import Gaps
from calib.sizes import InputSizes
from calib.task import Batch, Task, TrainableTask

Kinds: TypeAlias = tuple[tuple[torch.dtype, torch.Size], ...]
"""Type and shape of each input of a batch."""


def each_batch(batches: Iterable[Any], what: str, sizes: InputSizes | None = None) -> Iterator[Batch]:
    """Yield the batches, each checked; none is kept, not even while the next one is made.
    What computing with them leaves free in the heap is given back (`calib.heap.Gaps`).

    A batch is a `Batch`, or any `(inputs, target)` pair; `inputs` is a tensor `[n, ...]` or a tuple or list of them.
    `what` names the batches in messages. `sizes` are those that the engine takes, None where calibration is to say it.
    Raises UserError for anything else, for an empty loader, for NaN or infinite inputs, for inputs of one batch that
    disagree on `n`, and for batches that disagree on number, type or axes of the inputs.
    """
    first: Kinds | None = None
    gaps, numbers = Gaps(), itertools.count()  # enumerate() would keep a batch while the next one is made
    for item in _looped(batches, what):
        where = f"{what} batch {next(numbers)}"
        batch = _batch(item, where)
        del item
        if first is not None:
            _check_same(first, batch, where)
        if sizes is not None:
            sizes.check(batch.inputs, where)
        first = first or _kinds(batch)
        taken = bytes_of(batch)
        yield batch
        del batch
        gaps.close(taken)
    if first is None:
        raise UserError(f"{what}() gave no batch: is the loader empty, or an iterator that was already used up?")


def bytes_of(batch: Batch) -> int:
    """Return how much memory the inputs and the target of a batch take."""
    leaves = pytree.tree_leaves((batch.inputs, batch.target))
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, (Tensor, np.ndarray)))


def check_batches(batches: Iterable[Any], *, what: str = "calibration") -> None:
    """Raise UserError unless `batches` can be looped over twice, with the same first batch, which is as `each_batch`
    wants it. Looks at one batch, two times.
    """
    first = _first(batches, what)
    again = _first(batches, what)
    if first is None:
        raise UserError(f"{what}() gave no batch: is the loader empty, or an iterator that was already used up?")
    if again is None:
        raise UserError(
            f"{what}() is empty the second time it is looped over: return a list or a DataLoader, not a generator, "
            "or let every call make a new one"
        )
    for one, two in zip(first.inputs, again.inputs, strict=False):
        if not torch.equal(one, two):
            raise UserError(
                f"{what}() gives other batches the second time: turn off shuffling and random augmentation, or no "
                "result could be "
                "compared with another"
            )


def training_batches(task: Task, epoch: int, sizes: InputSizes | None = None) -> Iterator[Batch]:
    """Yield the batches of one pass over a task's training data, each checked as `each_batch` does, none of them kept.
    `sizes` are those that the engine takes, where they are known.

    Raises UserError when the task has no training data, when a pass is empty, and for any batch that is not as the
    first one.
    """
    if not isinstance(task, TrainableTask):
        raise UserError(
            f"task {task.name} has no training data: give it a method training(epoch) that returns batches which "
            "calibration() "
            "does not hold (see calib.task.TrainableTask)"
        )
    first: Kinds | None = None
    for index, item in enumerate(_looped(call_task(task, "training", epoch), "training")):
        where = f"training batch {index} of epoch {epoch}"
        batch = _batch(item, where)
        if first is not None:
            _check_same(first, batch, where)
        if sizes is not None:
            sizes.check(batch.inputs, where)
        first = first or _kinds(batch)
        yield batch
    if first is None:
        raise UserError(
            f"training({epoch}) gave no batch: is the loader empty, or an iterator that was already used up?"
        )


def call_task(task: Task, method: str, *arguments: object) -> Any:
    """Call a method of the user's task; whatever it raises is the user's to see."""
    try:
        return getattr(task, method)(*arguments)
    except UserError:
        raise
    except Exception as error:
        called = f"{method}({', '.join(map(str, arguments))})"
        raise UserError(f"the task's {called} failed: {type(error).__name__}: {error}") from error


def check_model(model: object) -> nn.Module:
    """Return `model` if it is a module whose parameters and buffers are finite, and single precision where they are
    floats.

    Raises UserError that names the first that is not, and for a module or a default type that nothing can be made of.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"the model must be a torch.nn.Module, not {_type(model)}")
    check_kind(model)
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor):
            raise UserError(
                f"{name!r} of the model has no shape yet: run a lazy model on one batch before handing it over"
            )
        if tensor.is_meta:
            raise UserError(f"{name!r} of the model is on the meta device, which holds no values: load the weights")
        if tensor.device.type != "cpu":
            raise UserError(
                f"{name!r} of the model is on {tensor.device}: hand over model.cpu(); the search uses a GPU, where "
                "there is one, all the same"
            )
        check_dense(tensor, f"{name!r} of the model")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"{name!r} of the model is {kind}: hand over model.float(), the target decides the float type of the "
                "engine"
            )
        check_finite(tensor, f"{name!r} of the model")
    return model


def check_finite(tensor: Tensor, what: str) -> None:
    """Raise UserError, which starts with `what`, when a floating-point tensor holds NaN or infinity."""
    if not all_finite(tensor):
        kind = "NaN" if bool(torch.isnan(tensor).any()) else "an infinite value"
        raise UserError(f"{what} holds {kind}: correct it first, quantisation would spread it")


def per_sample(function: Callable[..., Any], arguments: Sequence[Any], count: int, what: str) -> Tensor:
    """Return what a task's function (`metric`, `loss`, `divergence`) says about `count` samples, as `[count]` float64.

    Raises UserError, which names the function by `what`, when it raises, changes its arguments, or returns anything but
    one finite number a sample.
    """
    try:
        with left_alone(arguments, what):
            found = torch.as_tensor(function(*arguments)).detach()
    except UserError:
        raise
    except Exception as error:
        where = " on a batch without a target" if arguments[-1] is None else ""
        raise UserError(f"the task's {what}() failed{where}: {type(error).__name__}: {error}") from error
    if found.is_complex():
        raise UserError(f"the task's {what}() returns complex numbers: return real ones, as their absolute values")
    values = found.double()
    if values.shape != (count,):
        raise UserError(f"the task's {what}() must return one value per sample, [{count}], not {list(values.shape)}")
    check_finite(values, f"the result of the task's {what}()")
    return values


@contextmanager
def left_alone(arguments: Sequence[Any], what: str) -> Iterator[None]:
    """Raise UserError, which names the function by `what`, when tensors of its arguments were written to meanwhile.

    Outputs of the float model and targets are kept and read again: the next policy would be compared with other ones.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor) and not leaf.is_inference()]
    before = [tensor._version for tensor in tensors]  # noqa: SLF001 - torch's own count of writes
    yield
    if [tensor._version for tensor in tensors] != before:  # noqa: SLF001
        raise UserError(
            f"the task's {what}() changes its arguments, which are read again after it: let it work on copies, as "
            "output.clone(), and without operators in place"
        )


def _first(batches: Iterable[Any], what: str) -> Batch | None:
    for item in _looped(batches, what):
        return _batch(item, f"{what} batch 0")
    return None


def _looped(batches: Iterable[Any], what: str) -> Iterator[Any]:
    """Yield the items; what the user's loader raises is the user's to see, as a sentence."""
    try:
        yield from batches
    except UserError:
        raise
    except Exception as error:
        if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
            raise UserError(f"{what}() must return batches to loop over, not {_type(batches)}") from None
        raise UserError(f"looping over {what}() failed: {type(error).__name__}: {error}") from error


def _batch(item: object, where: str) -> Batch:
    # A Batch is itself a tuple of two.
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise UserError(f"{where} must be a calib.task.Batch or a pair (inputs, target), not {_type(item)}")
    inputs, target = item
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    if not isinstance(inputs, (tuple, list)) or not inputs:
        raise UserError(f"the inputs of {where} must be a tensor or a tuple of tensors, not {_type(inputs)}")
    for position, tensor in enumerate(inputs):
        if not isinstance(tensor, Tensor):
            raise UserError(f"input {position} of {where} must be a tensor, not {_type(tensor)}")
        if tensor.is_meta:
            raise UserError(f"input {position} of {where} is on the meta device, which holds no values: load the data")
        if tensor.device.type != "cpu":
            raise UserError(f"input {position} of {where} is on {tensor.device}: give tensor.cpu()")
        check_tensor(tensor, f"input {position} of {where}")
        if tensor.dim() == 0 or tensor.shape[0] == 0:
            raise UserError(
                f"input {position} of {where} has shape {list(tensor.shape)}: the first dimension must count the "
                "samples"
            )
        check_finite(tensor, f"input {position} of {where}")
    sizes = [tensor.shape[0] for tensor in inputs]
    if len(set(sizes)) > 1:
        raise UserError(f"the inputs of {where} disagree on the number of samples: {sizes}")
    if isinstance(target, Tensor) and target.dim() > 0 and target.shape[0] != sizes[0]:
        raise UserError(f"{where} has {sizes[0]} samples and {target.shape[0]} targets")
    if isinstance(target, Tensor):
        check_dense(target, f"the target of {where}")
        check_finite(target, f"the target of {where}")
    # in the layout that was given: a module can tell one from another, and is compared on what it will be given
    return Batch(tuple(_usable(tensor.detach()) for tensor in inputs), _usable_target(target))


def _usable(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor that was made under `torch.inference_mode`: no gradient could go through it."""
    return tensor.clone() if tensor.is_inference() else tensor


def _usable_target(target: Any) -> Any:
    """Return the target itself, unless it holds a tensor that has to be copied."""
    if not any(isinstance(leaf, Tensor) and leaf.is_inference() for leaf in pytree.tree_leaves(target)):
        return target
    return pytree.tree_map_only(Tensor, _usable, target)


def _kinds(batch: Batch) -> Kinds:
    return tuple((tensor.dtype, tensor.shape) for tensor in batch.inputs)


def _check_same(first: Kinds, batch: Batch, where: str) -> None:
    """Sizes may change from batch to batch, where the model can be traced for them; types and axes may not."""
    if len(first) != len(batch.inputs):
        raise UserError(f"{where} has {len(batch.inputs)} inputs, the first batch has {len(first)}")
    for position, ((dtype, shape), tensor) in enumerate(zip(first, batch.inputs, strict=True)):
        if (len(shape), dtype) != (tensor.dim(), tensor.dtype):
            raise UserError(
                f"input {position} of {where} is {tensor.dtype} {list(tensor.shape)}, in the first batch {dtype} "
                f"{list(shape)}: only sizes may differ"
            )


def _type(value: object) -> str:
    return f"a value of type {type(value).__name__}"
