"""What a number type declares, and the registry of number types. Importing it does not load torch."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

_NAME = re.compile(r"[1-9]|[a-z]+[0-9]+(\.[0-9]+)?")


@dataclass(frozen=True)
class Storage:
    """The ONNX type that holds the values of a number type, by its name in ONNX, and the least opset that takes it in
    QuantizeLinear and DequantizeLinear.
    """

    onnx_type: str
    least_opset: int


@dataclass(frozen=True)
class NumberType(ABC):
    """What the numbers of a weight or of an activation are. A number stands for a float32 scale times its value.

    A weight has one scale for each output channel, or for each block of inputs; an activation has one.

    1. `quantized`: there is a scale. Floats of 16 and 32 bits have none, and the layer computes in them.
    2. `alone`: the name is a format of its own, with weight and activation of this type (`fp8`).
    3. `blocks`: weights may have a scale for each block of inputs.
    4. `is_integer`: values are evenly spaced integers with a zero point. Sums, concatenations and biases in integers,
       and learned steps, are for these types alone.
    5. `one_scale`: all output channels of a weight share one scale.
    6. `smallest_clip`: the clip search for weights (`calib.rounding`) goes down to this share of the largest magnitude.
    7. `zero_points`: a weight has a zero point beside each scale, and a number stands for the scale times the
       difference of its value and the zero point. `only_blocks`: there is no scale for a whole channel.
    8. Blocks may have several widths: `with_widths` decides them, and `of_block` is the type of one block.
    9. `as_floats`: no ONNX type holds the values, and files hold the floats that they stand for.
    """

    name: str

    quantized: ClassVar[bool] = True
    alone: ClassVar[bool] = False
    blocks: ClassVar[bool] = False
    is_integer: ClassVar[bool] = False
    one_scale: ClassVar[bool] = False
    zero_points: ClassVar[bool] = False
    only_blocks: ClassVar[bool] = False
    as_floats: ClassVar[bool] = False

    @property
    @abstractmethod
    def bits(self) -> float:
        """Bits of one number, on average where blocks have several widths."""

    @property
    def widest_bits(self) -> int:
        """Bits of one number of the widest block."""
        return int(self.bits)

    @property
    def for_weights(self) -> bool:
        """Whether weights may be of this type."""
        return True

    @property
    def for_activations(self) -> bool:
        """Whether activations may be of this type."""
        return True

    @property
    @abstractmethod
    def limits(self) -> tuple[float, float]:
        """Smallest and largest value, in units of the scale."""

    @property
    def unsigned_limits(self) -> tuple[float, float] | None:
        """The same for a type that has unsigned values too, with a zero point among them; else None."""
        return None

    @property
    def smallest_clip(self) -> float:
        """Least share of the largest magnitude that the clip search tries."""
        return 0.3

    @property
    def scale_bits(self) -> int:
        """Bits of a stored scale of a weight."""
        return 32

    @property
    def zero_point_bits(self) -> float:
        """Bits of a stored zero point of a weight, on average."""
        return 0

    @property
    @abstractmethod
    def weight_storages(self) -> tuple[Storage, ...]:
        """What can hold a weight in ONNX, the narrowest first."""

    def activation_storage(self, *, signed: bool) -> Storage:
        """Return what holds an activation in ONNX."""
        del signed
        return self.weight_storages[-1]

    def overhead_bits(self, rows: int, columns: int, block: int | None) -> float:
        """Return the bits that a weight `[rows, columns]` takes besides its values: scales and zero points."""
        scales = 1 if self.one_scale else rows * (columns // block if block else 1)
        return scales * (self.scale_bits + self.zero_point_bits)

    @property
    def zero_point_limits(self) -> tuple[int, int]:
        """Smallest and largest zero point of a weight."""
        return 0, 0

    def with_widths(self, choose: Callable[[], tuple[int, ...]]) -> NumberType:
        """Return the type of a weight whose blocks have the widths that `choose` gives in bits, where the type leaves
        them open; else the type itself.
        """
        del choose
        return self

    @property
    def block_widths(self) -> tuple[int, ...]:
        """Bits of each block where these differ and are known; else empty."""
        return ()

    @property
    def spacing(self) -> int:
        """How far a value is from the next one."""
        return 1

    def of_block(self, number: int) -> NumberType:
        """Return the type of the numbers in one block of inputs, where the widths of blocks are known."""
        del number
        return self

    def held(self, scale: Tensor) -> Tensor:
        """Return scales of a weight (float32) as they are stored; same shape, float32."""
        return scale

    @abstractmethod
    def round_(self, steps: Tensor, low: float, high: float) -> Tensor:
        """Round `steps`, a float tensor in units of the scale, to values from `low` to `high`; in place."""

    @abstractmethod
    def stored(self, values: Tensor) -> Tensor:
        """Return values of the type (float tensor) in the torch type that keeps them: one byte a value."""

    def cast(self, weight: Tensor) -> Tensor | None:
        """Return a weight in a type that is not quantised, as float32; None where nothing changes."""
        del weight
        return None


NUMBER_TYPES: dict[str, NumberType] = {}
_Class = TypeVar("_Class", bound=type[NumberType])


def number_type(*names: str) -> Callable[[_Class], _Class]:
    """Register a number type under each name, as it stands in formats: `8` in `w8a8`, `fp8` in `fp8` and `wfp8a16`.

    1. Write a subclass of `NumberType` in a file of its own in `calib/formats`; one class for a family. A name is one
       digit, or letters and a number (`fp8`, `m2.5`).
    2. `limits` and `round_` say which values there are, in units of the scale. `weight_storages` says which ONNX types
       hold them: every value must be one of theirs.
    3. Decorate it with `@number_type("my8")`, and import the file in `calib.formats.format`. Import torch inside of
       methods, so that `smpq --help` answers at once.
    4. Say in the tables of the targets (`deploy/targets/capabilities`) what becomes of the formats. `simulate` takes
       every format. A format that no rule of a target names is refused there.

    Calibration, rounding, search, export and report ask the type; none knows its name.
    """

    def register(cls: _Class) -> _Class:
        for name in names:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a number type: write one digit, or letters and a number")
            NUMBER_TYPES[name] = cls(name)
        return cls

    return register
