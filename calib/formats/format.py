"""How one layer's weight and input activation are represented."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, total_ordering

from calib.errors import UserError

# The families of number types, in the order in which messages list them.
from calib.formats import floats, integers, mixed_widths, tables, zero_points
from calib.formats.number_type import NUMBER_TYPES, NumberType

__all__ = [
    "FLOAT_ACTIVATION_BITS",
    "FP16",
    "FP32",
    "Format",
    "floats",
    "formats_from_text",
    "integers",
    "mixed_widths",
    "tables",
    "zero_points",
]

FLOAT_ACTIVATION_BITS = 16
"""The `a16` of a weight-only format: the activation stays in the floating-point type of the engine."""

_FEW_NAMES = 3
"""More names of a family stand in a message as the first and the last one."""
_TEXT = re.compile(r"w(?P<weight>\d+|[a-z]+?\d+(?:\.\d+)?)(?:a(?P<activation>\d+|[a-z]+?\d+))?(?:b(?P<block>\d+))?")


@total_ordering
@dataclass(frozen=True)
class Format:
    """Number types of the weight and of the activation of one layer, and the granularity of the weight's scales.

    1. `fp32` and `fp16` are floating point, without scales.
    2. `w8a8`, `w3a8`, ...: integer weight (one scale per output channel), integer activation (one scale per tensor).
    3. `w4a16`, `w8a16`: weight-only, `activation` is None; `w4` and `w8` are short for them.
    4. `w4a16b128`: weight-only, one scale for every block of 128 weights along the input dimension.
    5. `wt7a8`, `wt8a8`: integer weights that share one scale.
    6. `wz4a16b32`: as 4, with a zero point for every block.
    7. `wm2.5a16b32`: as 6, each block of 32 input columns with its own width, 2.5 bits on average.
    8. `wc2.5a16`: a table of numbers for each input channel, 2.5 bits on average.
    9. Other number types in the same way: `wfp8a16`. A type that is a format of its own has its name alone: `fp8`.
    """

    weight: NumberType
    activation: NumberType | None = None
    weight_block: int | None = None

    def __post_init__(self) -> None:
        weight, activation = self.weight, self.activation
        if not weight.quantized:
            if activation is not None or self.weight_block is not None:
                raise UserError(f"{weight.name} is a format by itself, without activation bits or a block size")
            return
        if not weight.for_weights:
            raise UserError(f"weights of type {weight.name} are not supported: use {_listed(_for_weights())}")
        if activation is not None and (not activation.quantized or not activation.for_activations):
            raise UserError(
                f"activations of type {activation.name} are not supported: use {_listed(_for_activations())}, "
                f"or leave them float (a{FLOAT_ACTIVATION_BITS})"
            )
        if activation is not None and weight.as_floats:
            raise UserError(f"weights of type {weight.name} go with float activations: write w{weight.name}a16")
        if self.weight_block is None:
            if weight.only_blocks:
                raise UserError(f"weights of type {weight.name} need blocks: write for example w{weight.name}a16b32")
            return
        if activation is not None or self.weight_block < 2:
            raise UserError("a block size needs float activations and at least two weights a block, as in w4a16b128")
        if not weight.blocks:
            raise UserError(f"weights of type {weight.name} have one scale for each output channel, not for blocks")

    @classmethod
    def from_text(cls, text: str) -> Format:
        """Parse `fp32`, `fp8`, `w8a8`, `w4`, `w4b128`, `w4a16b128`, `wfp8a16`, ...; raises UserError that lists the
        forms.
        """
        text = text.strip().lower()
        own = NUMBER_TYPES.get(text)
        if own is not None and own.alone:
            return cls(own, own if own.quantized else None)
        match = _TEXT.fullmatch(text)
        if match is None:
            raise UserError(f"unknown format {text!r}: write {_forms()}")
        activation = match["activation"] or str(FLOAT_ACTIVATION_BITS)
        weight, read = NUMBER_TYPES.get(match["weight"]), NUMBER_TYPES.get(activation)
        if weight is None or not weight.quantized or (read is None and activation != str(FLOAT_ACTIVATION_BITS)):
            raise UserError(f"unknown format {text!r}: write {_forms()}")
        block = match["block"]
        return cls(weight, read, int(block) if block is not None else None)

    @property
    def weight_bits(self) -> float:
        """Bits of one weight, on average where blocks have several widths."""
        return self.weight.bits

    @property
    def activation_bits(self) -> int:
        """Bits of one input; 16 for a weight-only format, whatever the float type of the engine is."""
        if self.activation is not None:
            return int(self.activation.bits)
        return FLOAT_ACTIVATION_BITS if self.weight.quantized else int(self.weight.bits)

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantised."""
        return not self.weight.quantized

    @property
    def quantizes_activation(self) -> bool:
        """Whether the layer's input is a quantised tensor."""
        return self.activation is not None

    @property
    def reads_integers(self) -> bool:
        """Whether the layer's input is an integer tensor, which sums and concatenations can make too."""
        return self.activation is not None and self.activation.is_integer

    @property
    def weight_key(self) -> str:
        """Name of the weight's own representation; formats that differ only in the activation share it."""
        block = f"b{self.weight_block}" if self.weight_block else ""
        return f"w{self.weight.name if self.weight.quantized else self.weight_bits}{block}"

    @cached_property
    def _hash(self) -> int:
        return hash((self.weight_bits, self.activation_bits, self.weight_block or 0))  # the same in every process

    def __hash__(self) -> int:
        return self._hash

    def __lt__(self, other: Format) -> bool:
        return self._key() < other._key()

    def _key(self) -> tuple[float, int, int, str]:
        return self.weight_bits, self.activation_bits, self.weight_block or 0, str(self)

    def __str__(self) -> str:
        if self.weight.alone and self.activation == (self.weight if self.weight.quantized else None):
            return self.weight.name
        activation = self.activation.name if self.activation is not None else FLOAT_ACTIVATION_BITS
        block = f"b{self.weight_block}" if self.weight_block else ""
        return f"w{self.weight.name}a{activation}{block}"


def _for_weights() -> list[str]:
    """The names of types for weights; those of a large family as `m1.25 to m6`."""
    families: dict[str, list[str]] = {}
    for name in sorted(name for name, found in NUMBER_TYPES.items() if found.quantized and found.for_weights):
        families.setdefault(name.rstrip("0123456789."), []).append(name)
    listed: list[str] = []
    for letters, names in families.items():
        few = not letters or len(names) <= _FEW_NAMES
        ends = sorted(names, key=lambda name: float(name.removeprefix(letters)))
        listed += names if few else [f"{ends[0]} to {ends[-1]}"]
    return listed


def _for_activations() -> list[str]:
    return sorted(name for name, found in NUMBER_TYPES.items() if found.quantized and found.for_activations)


def _forms() -> str:
    alone = ", ".join(name for name, found in NUMBER_TYPES.items() if found.alone)
    return (
        f"{alone}, w8a8, w4 or w4a16 (float activations), or w4a16b128 (blocks); weights may be "
        f"{_listed(_for_weights())}, activations {_listed(_for_activations())}"
    )


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


SYNONYMS = {"int8": "w8a8", "int4": "w4a16"}
"""What people type, and which format it is."""
FP32 = Format(NUMBER_TYPES["fp32"])
FP16 = Format(NUMBER_TYPES["fp16"])


def formats_from_text(text: str) -> tuple[Format, ...]:
    """Parse a comma-separated list, e.g. `w8a8,fp32`; duplicates are an error.

    `int8` stands for `w8a8` and `int4` for `w4a16`, as the field calls them. A policy holds the second
    spelling.
    """
    parts = [part.strip().lower() for part in text.split(",") if part.strip()]
    formats = tuple(Format.from_text(SYNONYMS.get(part, part)) for part in parts)
    if not formats:
        raise UserError("no format given: write for example --formats w8a8,fp32")
    if len(set(formats)) != len(formats):
        raise UserError(f"a format is named twice in {text!r}")
    return formats
