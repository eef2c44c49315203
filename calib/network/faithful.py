"""Compare the module that was handed over with its trace: an engine is only as right as the graph it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from calib.batches import picked
from calib.errors import UserError, first_line
from calib.network.agreement import Agreement
from calib.network.graph import TracedModel
from calib.sizes import Shape, resized, shapes_of_one
from calib.task import Batch

_FEW = 8
"""Samples of each further batch that is compared."""
_SHORT = 3
_LARGEST = 64
"""Largest batch that is put together for a size that calibration does not have; ranges of the trace cover the larger
ones.
"""
_ADVANCES = (1, 10, 1000, 100_000)


class UnfaithfulError(UserError):
    """The trace computes something else than the module; `samples` is the size of the batch where it does."""

    def __init__(self, message: str, samples: int) -> None:
        super().__init__(message)
        self.samples = samples


def run_eager(module: nn.Module, inputs: Sequence[Tensor], where: str) -> Any:
    """Run the user's module on copies of the inputs, without gradients; UserError, which names `where`, when it
    raises.
    """
    try:
        with torch.no_grad():
            output = module(*(tensor.detach().clone() for tensor in inputs))
            # a copy, because what is returned may be the module's own memory
            return pytree.tree_map_only(Tensor, torch.clone, output)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the model fails on {where}: {type(error).__name__}: {first_line(error)}") from error


def check_faithful(module: nn.Module, traced: TracedModel, batches: Sequence[Batch], sizes: Iterable[int] = ()) -> None:
    """Raise UnfaithfulError unless `traced` computes what `module` does; see `Agreement` for how much rounding may
    change.

    `module` is the user's own, in eval mode, as it was handed over. Both run on

    1. the first calibration batch as it is, in the layout that the task gives it, and eight samples of one in the
       middle and of the last one;
    2. where the batch is free: one sample, a short batch of three, and each of `sizes` up to 64 samples; where other
       axes
       are free, samples of some sizes that calibration has, and of those that were stated;
    3. the first sample, and then eight, two times more at the end, one after the other: the module must repeat what it
       gave at the start.

    The module must leave its parameters alone. Numbers that it counts up in attributes of its own must not matter: they
    are set to what they will be after many calls, and it must still give the same. Cost: two runs of a calibration
    batch and a few dozen samples.
    """
    before, parameters = _numbers(module), _digests(module)
    whole, one, *others = _probes(traced, batches, tuple(sizes))
    expected = run_eager(module, whole.inputs, whole.where)
    agreement = Agreement(expected)
    _compare(agreement, traced, expected, whole)
    first = _attempt(module, one, traced)
    _compare(agreement, traced, first, one)
    for probe in others:
        _compare(agreement, traced, _attempt(module, probe, traced), probe)
    few = _cut(whole.inputs, _FEW) if traced.dynamic_batch else whole.inputs
    for inputs, given in ((one.inputs, first), (few, traced.run([tensor.detach().clone() for tensor in few]))):
        for _ in range(2):  # behind another batch, and twice in a row
            problem = agreement.difference(run_eager(module, inputs, "a second call"), given)
            if problem is not None:
                raise UserError(f"the model gives something else when it is called again ({problem}): {_STATELESS}")
    for name, digest in _digests(module).items():
        if digest != parameters.get(name, digest):
            raise UserError(f"forward() changes the parameter {name!r}: {_STATELESS}")
    changed = {key for key, value in _numbers(module).items() if key in before and value != before[key]}
    _check_counters(module, changed, one.inputs, agreement, first)


_STATELESS = (
    "an engine has no memory between calls and draws no random numbers, so leave both out in eval mode, "
    "or make them inputs"
)


@dataclass(frozen=True)
class _Probe:
    """A batch to compare on, and what it is called in messages."""

    where: str
    inputs: tuple[Tensor, ...]

    @property
    def samples(self) -> int:
        return len(self.inputs[0])


def _probes(traced: TracedModel, batches: Sequence[Batch], sizes: tuple[int, ...]) -> list[_Probe]:
    """Return the first batch, the one to repeat, and the others."""
    free, inputs = traced.dynamic_batch, batches[0].inputs
    whole = _Probe("calibration batch 0", inputs)
    one = _Probe("one sample", _cut(inputs, 1)) if free else whole
    chosen = picked(batches, {len(batches) // 2, len(batches) - 1} - {0})
    others = [
        _Probe(f"calibration batch {index}", _cut(batch.inputs, _FEW if free else None))
        for index, batch in chosen.items()
    ]
    others += _of_other_sizes(traced, batches, _FEW if free else None)
    if free:
        alike = [probe.inputs for probe in others if _shapes(probe.inputs) == _shapes(inputs)]
        pool = _pool([inputs, *alike])
        missing = {_SHORT, *sizes} - {probe.samples for probe in (whole, one, *others)}
        others += [
            _Probe(f"a batch of {size}", tuple(_repeated(tensor, size) for tensor in pool))
            for size in sorted(missing)
            if size <= _LARGEST
        ]
    return [whole, one, *others]


def _of_other_sizes(traced: TracedModel, batches: Sequence[Batch], count: int | None) -> list[_Probe]:
    """Return samples of all sizes that the trace must hold for, where there are several."""
    if not traced.sizes.any_free:
        return []
    found, first = [], dict[tuple[Shape, ...], Batch]()
    for batch in batches:
        shapes = _shapes(batch.inputs)
        if shapes in traced.sizes.probes:
            first.setdefault(shapes, batch)
    for shapes in traced.sizes.probes:
        given = first.get(shapes, batches[0]).inputs
        inputs = tuple(resized(tensor[:count], shape) for tensor, shape in zip(given, shapes, strict=True))
        found.append(_Probe("samples of " + ", ".join("x".join(map(str, shape)) for shape in shapes), inputs))
    return found


def _shapes(inputs: Sequence[Tensor]) -> tuple[Shape, ...]:
    return shapes_of_one([tensor.shape for tensor in inputs])


def _pool(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(column)[:_LARGEST] for column in zip(*parts, strict=True))


def _repeated(tensor: Tensor, size: int) -> Tensor:
    return torch.cat([tensor] * -(-size // len(tensor)))[:size]


def _cut(inputs: Sequence[Tensor], count: int | None) -> tuple[Tensor, ...]:
    return tuple(tensor[:count].contiguous() for tensor in inputs)


def _attempt(module: nn.Module, probe: _Probe, traced: TracedModel) -> Any:
    """Run the module on a batch of a size that the data may not have: what it cannot do, a free batch must not
    promise.
    """
    try:
        return run_eager(module, probe.inputs, probe.where)
    except UserError as error:
        if not traced.dynamic_batch:
            raise
        raise UnfaithfulError(str(error), probe.samples) from error


def _compare(agreement: Agreement, traced: TracedModel, expected: Any, probe: _Probe) -> None:
    try:
        found = traced.run([tensor.detach().clone() for tensor in probe.inputs])
    except Exception as error:
        raise UnfaithfulError(
            f"the traced model fails on {probe.where}, which the model itself does not: {first_line(error)}",
            probe.samples,
        ) from error
    problem = agreement.difference(found, expected)
    if problem is not None:
        samples = "" if probe.where == "one sample" else f" ({probe.samples} samples)"
        raise UnfaithfulError(
            f"the traced model does not compute what the model does on {probe.where}{samples}: {problem}. An engine "
            "computes one "
            "graph: forward() must not depend on the number of samples, on their size or layout in memory, on earlier "
            "calls or on anything outside",
            probe.samples,
        )


def _digests(module: nn.Module) -> dict[str, tuple[int, float]]:
    """Return what shows a change of a parameter without a copy of all of them: torch's count of writes, and the sum."""
    with torch.no_grad():
        return {
            name: (tensor._version, float(tensor.sum(dtype=torch.float64)))  # noqa: SLF001 - torch has no other count
            for name, tensor in module.named_parameters()
        }


def _numbers(module: nn.Module) -> dict[tuple[str, str], float]:
    """Return the plain numbers that the modules hold as attributes, and the lengths of their lists, by path and
    name.
    """
    found: dict[tuple[str, str], float] = {}
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                found[path, name] = value
            elif isinstance(value, list):
                found[path, name] = len(value)
    return found


def _check_counters(
    module: nn.Module, changed: set[tuple[str, str]], inputs: Sequence[Tensor], agreement: Agreement, expected: Any
) -> None:
    for step in _ADVANCES if changed else ():
        with _advanced(module, changed, step):
            try:
                problem = agreement.difference(run_eager(module, inputs, "a later call"), expected)
            except UserError as error:
                problem = str(error)
        if problem is not None:
            names = ", ".join(sorted(".".join(filter(None, key)) for key in changed))
            raise UserError(
                f"the output depends on what forward() keeps in {names} from call to call ({problem}): {_STATELESS}"
            )


@contextmanager
def _advanced(module: nn.Module, changed: set[tuple[str, str]], step: int) -> Iterator[None]:
    """Let the attributes stand, for a while, where they would after `step` more calls."""
    places = [(vars(module.get_submodule(path)), name) for path, name in changed]
    before = [attributes[name] for attributes, name in places]
    try:
        for attributes, name in places:
            value = attributes[name]
            attributes[name] = value + (value[-1:] * step if isinstance(value, list) else step)
        yield
    finally:
        for (attributes, name), value in zip(places, before, strict=True):
            attributes[name] = value
