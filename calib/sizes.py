"""Which sizes the inputs of a model may have, besides the number of samples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from calib.errors import UserError

if TYPE_CHECKING:  # settings are read without torch
    from torch import Tensor

Shape = tuple[int, ...]
"""Sizes of one sample: those of a tensor without its first axis."""

_STATED = re.compile(r"(?P<name>[^=:]+)=(?P<usual>\d+(x\d+)*)(:(?P<least>\d+(x\d+)*):(?P<most>\d+(x\d+)*))?")
_PROBES = 8


@dataclass(frozen=True)
class StatedSizes:
    """What a person says of one input: the sizes that are usual, and the least and the most of each axis, all with the
    number of samples in front.
    """

    name: str
    usual: Shape
    least: Shape
    most: Shape


def sizes_from_text(text: str) -> StatedSizes:
    """Read `x=1x3x352x352` or `x=1x3x352x352:1x3x224x224:1x3x512x512`: usual, least, most. UserError when it is
    neither.
    """
    found = _STATED.fullmatch(text.strip())
    if found is None:
        raise UserError(
            f"{text!r} is no shape of an input: write 'x=1x3x352x352', or the usual, the least and the most sizes, as "
            "'x=1x3x352x352:1x3x224x224:1x3x512x512'"
        )
    usual, least, most = (_numbers(found[part] or found["usual"]) for part in ("usual", "least", "most"))
    ordered = len(usual) == len(least) == len(most) and all(
        0 < low <= middle <= high for low, middle, high in zip(least, usual, most, strict=True)
    )
    if not ordered:
        raise UserError(f"{text!r}: the usual size of each axis lies between its least and its most, from 1 up")
    if least[0] != most[0]:
        raise UserError(f"{text!r}: the number of samples comes first and is that of --batch in all three")
    return StatedSizes(found["name"].strip(), usual, least, most)


def _numbers(text: str) -> Shape:
    return tuple(int(part) for part in text.split("x"))


class AxisRange(NamedTuple):
    """Sizes of one sample of an input."""

    least: Shape
    usual: Shape
    most: Shape


@dataclass(frozen=True)
class InputSizes:
    """Sizes of one sample of each input: the `usual` ones, the `least` and the `most` of each axis.

    `probes` are combinations that a trace must hold for: those that calibration has, and those that were stated.
    `samples` are the most at once, None where there is no limit.
    """

    usual: tuple[Shape, ...]
    least: tuple[Shape, ...]
    most: tuple[Shape, ...]
    probes: tuple[tuple[Shape, ...], ...]
    samples: int | None = None

    @property
    def free(self) -> tuple[tuple[int, ...], ...]:
        """The axes of each input that have no single size; the samples are counted by axis 0, which is not among
        them.
        """
        return tuple(
            tuple(axis for axis, ends in enumerate(zip(low, high, strict=True), 1) if ends[0] < ends[1])
            for low, high in zip(self.least, self.most, strict=True)
        )

    @property
    def between(self) -> tuple[Shape, ...]:
        """Sizes half-way from the least to the most of each axis: of samples that have a size of 1 in one axis or the
        other, none has both free for torch, which takes a 1 for fixed.
        """
        return tuple(
            tuple((a + b + 1) // 2 for a, b in zip(low, high, strict=True))
            for low, high in zip(self.least, self.most, strict=True)
        )

    @property
    def any_free(self) -> bool:
        """Whether an axis has no single size."""
        return any(self.free)

    def ranges(self, names: Sequence[str]) -> dict[str, AxisRange]:
        """Return the sizes of each input by its name; none where no axis is free."""
        rows = zip(names, self.least, self.usual, self.most, strict=True)
        return {name: AxisRange(*row) for name, *row in rows} if self.any_free else {}

    def allow(self, inputs: Sequence[Tensor]) -> bool:
        """Whether each axis of each input lies in its range."""
        shapes = shapes_of_one([tensor.shape for tensor in inputs])
        return len(shapes) == len(self.usual) and all(
            len(shape) == len(low) and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
            for shape, low, high in zip(shapes, self.least, self.most, strict=True)
        )

    def check(self, inputs: Sequence[Tensor], where: str) -> None:
        """Raise UserError, which starts with `where`, for inputs that the engine does not take."""
        count = len(inputs[0])
        if self.samples is not None and count > self.samples:
            raise UserError(
                f"{where} has {count} samples, and the engine holds for at most {self.samples} at once: with more "
                "of them, forward() does something else. Give smaller batches"
            )
        if not self.allow(inputs):
            given = ", ".join(_written(tuple(tensor.shape[1:])) for tensor in inputs)
            raise UserError(
                f"{where} has samples of {given}, and the engine takes {self}: let calibration() have such "
                "samples too, or say with --shape which sizes there are"
            )

    def __str__(self) -> str:
        return ", ".join(
            _written(low) if low == high else f"{_written(low)} to {_written(high)}"
            for low, high in zip(self.least, self.most, strict=True)
        )


def shapes_of_one(shapes: Sequence[Sequence[int]]) -> tuple[Shape, ...]:
    """Return the sizes of one sample of each input, of the sizes of a batch."""
    return tuple(tuple(shape[1:]) for shape in shapes)


def sizes_of(
    shapes: Iterable[tuple[Shape, ...]], names: Sequence[str], stated: Sequence[StatedSizes] = (), samples: int = 1
) -> InputSizes:
    """Return the sizes that samples of the calibration batches have (`shapes`, of each batch those of its inputs), and
    those that were stated, which count in front of them.

    Without a stated one the usual size is the largest that calibration has, by its elements. `names` are those of the
    inputs, `samples` is how many the engine is timed with. UserError where what was stated is of no input, or of
    another number of axes or samples.
    """
    seen = list(dict.fromkeys(shapes))
    by_name = {each.name: each for each in stated}
    _check_stated(by_name, dict(zip(names, seen[0], strict=False)), samples)
    largest = max(seen, key=_elements)
    usual = tuple(by_name[name].usual[1:] if name in by_name else shape for name, shape in _named(names, largest))
    least, most = [], []
    for index, (name, shape) in enumerate(_named(names, usual)):
        known = [shape, *(each[index] for each in seen)]
        if name in by_name:
            known += [by_name[name].least[1:], by_name[name].most[1:]]
        least.append(tuple(map(min, zip(*known, strict=True))))
        most.append(tuple(map(max, zip(*known, strict=True))))
    ends = [usual, *([tuple(least), tuple(most)] if by_name else [])]
    spread = sorted(seen, key=_elements)
    few = [spread[round(step * (len(spread) - 1) / (_PROBES - 1))] for step in range(_PROBES)]
    return InputSizes(usual, tuple(least), tuple(most), tuple(dict.fromkeys([*ends, *few])))


def _named(names: Sequence[str], shapes: Sequence[Shape]) -> list[tuple[str, Shape]]:
    return [(names[index] if index < len(names) else "", shape) for index, shape in enumerate(shapes)]


def _check_stated(stated: Mapping[str, StatedSizes], shapes: Mapping[str, Shape], samples: int) -> None:
    for name, sizes in stated.items():
        if name not in shapes:
            raise UserError(f"--shape {name}=...: the model has no such input; it has {', '.join(shapes)}")
        if len(sizes.usual) != len(shapes[name]) + 1:
            raise UserError(
                f"--shape {name}=...: it states {len(sizes.usual)} sizes, and calibration() gives "
                f"{len(shapes[name]) + 1}: the number of samples, and those of one sample"
            )
        if sizes.usual[0] != samples:
            raise UserError(f"--shape {name}=...: the number of samples comes first and is that of --batch, {samples}")


def _elements(shapes: Sequence[Shape]) -> int:
    total = 0
    for shape in shapes:
        count = 1
        for size in shape:
            count *= size
        total += count
    return total


def _written(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "one number"


def resized(tensor: Tensor, shape: Shape) -> Tensor:
    """Return samples `[n, ...]` of another size: cut where they are too large, repeated where they are too small."""
    for axis, size in enumerate(shape, 1):
        length = tensor.shape[axis]
        if not length:
            tensor = tensor.new_zeros([*tensor.shape[:axis], size, *tensor.shape[axis + 1 :]])
        elif length < size:
            repeats = [1] * tensor.dim()
            repeats[axis] = -(-size // length)
            tensor = tensor.repeat(repeats)
        tensor = tensor.narrow(axis, 0, size)
    return tensor.contiguous()
