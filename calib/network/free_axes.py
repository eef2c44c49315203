"""Let torch trace a module with the axes free that have no single size: the batch, and others that vary."""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from calib.errors import UserError, first_line
from calib.network.batch_range import holds_for, in_ranges
from calib.network.fake_results import fake_results
from calib.network.unwritten import unwritten_code
from calib.sizes import InputSizes, Shape, resized


def traced_program(
    model: nn.Module, example: tuple[Tensor, ...], sizes: Sequence[int], free: bool, inputs: InputSizes | None
) -> tuple[ExportedProgram, bool]:
    """Return what torch traces, and whether the batch is free; `calib.network.tracing.trace_program` says which axes
    are. UserError where it cannot be traced, or not with the axes that have to be free.
    """
    with quiet(), fake_results(model):
        if inputs is not None and inputs.any_free:
            return _of_several_sizes(model, example, sizes, free, inputs)
        if free:
            try:
                choice = _free_axes(model, [(0,)] * len(example))
                program = torch.export.export(model, _fresh(example), dynamic_shapes=choice)
                if holds_for(program, example, _with_samples([_sample_shapes(example)], sizes)):
                    return program, True
            except Exception:  # noqa: BLE001, S110 - torch raises many types; a fixed batch is tried before giving up
                pass
        try:
            return torch.export.export(model, _fresh(example)), False
        except Exception as error:
            raise untraceable(error) from error


def _of_several_sizes(
    model: nn.Module, example: tuple[Tensor, ...], sizes: Sequence[int], free: bool, inputs: InputSizes
) -> tuple[ExportedProgram, bool]:
    """Trace with free axes besides the batch.

    1. Some examples are tried: where a size is that of a table, which is then not cut, torch's guards allow that size
       alone.
    2. Guards are about sizes that compute something else, and about sizes that only lie in memory in another way. So
       where no trace holds for all sizes, one whose ranges do is taken, and `calib.network.faithful` compares it with
       the module in all of them.
    """
    reason = ""
    for batch in (True, False) if free else (False,):
        choice = _free_axes(model, [(0, *axes) if batch else axes for axes in inputs.free])
        counts = sizes if batch else [len(example[0])]
        wanted, kept = _with_samples(inputs.probes, counts), list[ExportedProgram]()
        for shapes in dict.fromkeys((inputs.usual, *inputs.probes, inputs.between)):
            samples = tuple(resized(tensor, shape) for tensor, shape in zip(example, shapes, strict=True))
            try:
                program = torch.export.export(model, _fresh(samples), dynamic_shapes=choice)
            except Exception as error:  # noqa: BLE001 - torch raises many types
                reason = reason or _reason(error)
                continue
            try:
                if holds_for(program, samples, wanted):
                    return program, batch
                holds = holds_for(program, samples, _with_samples([shapes], counts))
            except Exception:  # noqa: BLE001 - torch writes guards as code, in which `random_.from` is no name
                holds = True
            if holds and in_ranges(program, wanted):
                kept.append(program)
        if kept:
            return kept[0], batch
    raise UserError(
        f"the model cannot be traced for inputs of several sizes ({inputs}): "
        f"{reason or 'no trace holds for all of them'}. Let calibration() and evaluation() give samples of one size, "
        "or take sizes from x.shape in forward()"
    )


def _sample_shapes(example: tuple[Tensor, ...]) -> tuple[Shape, ...]:
    return tuple(tuple(tensor.shape[1:]) for tensor in example)


def _with_samples(shapes: Sequence[Sequence[Shape]], counts: Sequence[int]) -> list[tuple[Shape, ...]]:
    return [tuple((count, *shape) for shape in row) for count in counts for row in shapes]


def untraceable(error: Exception) -> UserError:
    """Return the message about what torch raised."""
    return UserError(f"the model cannot be traced by torch.export, which ONNX export needs too: {_reason(error)}")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _fresh(example: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return copies: torch marks the tensors themselves as dynamic, and a second attempt on the same ones would fail
    like the first.
    """
    return tuple(tensor.detach().clone() for tensor in example)


def _free_axes(model: nn.Module, axes: Sequence[Sequence[int]]) -> tuple[Any, ...]:
    """Mark axes of each input as free; torch.export wants those that `*args` takes in one tuple."""
    free: list[Any] = [dict.fromkeys(row, torch.export.Dim.DYNAMIC) for row in axes]
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(free)
    first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*free[:first], tuple(free[first:]))


def input_names(model: nn.Module, count: int) -> list[str]:
    """Return what a trace calls the positional inputs of `forward`, of which there are `count`."""
    names: list[str] = []
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{index}" for index in range(count - len(names))]
        elif parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    return names[:count]


@contextmanager
def quiet() -> Iterator[None]:
    """Trace or run without gradients, warnings of torch about itself, and its log: the message that counts is ours."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        nowhere = io.StringIO()  # torch prints the graph of what it cannot trace
        with (
            warnings.catch_warnings(),
            torch.no_grad(),
            unwritten_code(),
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
