"""How one layer's weight and input activation are represented."""

from __future__ import annotations

import re
from dataclasses import dataclass

from calib.errors import UserError

FLOAT_BITS = {"fp32": 32, "fp16": 16}
WEIGHT_BITS = range(2, 9)
ACTIVATION_BITS = range(4, 9)
FLOAT_ACTIVATION_BITS = 16
"""The `a16` of a weight-only format: the activation stays in the floating-point type of the engine."""

_TEXT = re.compile(r"w(?P<weight>\d+)(?:a(?P<activation>\d+))?(?:b(?P<block>\d+))?")


@dataclass(frozen=True, order=True)
class Format:
    """Weight bits, activation bits and granularity of one layer.

    1. `fp32` and `fp16` are floating point; both sides have the same width.
    2. `w8a8`, `w3a8`, ...: integer weight (one scale per output channel), integer activation (one scale per tensor).
    3. `w4a16`, `w8a16`: weight-only; `w4` and `w8` are short for them.
    4. `w4a16b128`: weight-only, one scale for every block of 128 weights along the input dimension.
    """

    weight_bits: int
    activation_bits: int
    weight_block: int | None = None

    def __post_init__(self) -> None:
        if self.weight_bits == self.activation_bits and self.weight_bits in FLOAT_BITS.values():
            if self.weight_block is None:
                return
            raise UserError("a floating-point format has no block size")
        if self.weight_bits not in WEIGHT_BITS:
            raise UserError(f"weights of {self.weight_bits} bits are not supported: use 2 to 8, or fp16, or fp32")
        if self.activation_bits not in (*ACTIVATION_BITS, FLOAT_ACTIVATION_BITS):
            raise UserError(
                f"activations of {self.activation_bits} bits are not supported: use 4 to 8, or leave them float (a16)"
            )
        if self.weight_block is not None and (self.quantizes_activation or self.weight_block < 2):
            raise UserError("a block size needs float activations and at least two weights a block, as in w4a16b128")

    @classmethod
    def from_text(cls, text: str) -> Format:
        """Parse `fp32`, `fp16`, `w8a8`, `w4`, `w4b128`, `w4a16b128`, ...; raises UserError that lists the forms."""
        text = text.strip().lower()
        if text in FLOAT_BITS:
            return cls(FLOAT_BITS[text], FLOAT_BITS[text])
        match = _TEXT.fullmatch(text)
        if match is None:
            raise UserError(f"unknown format {text!r}: write fp32, fp16, w8a8 (w2..w8, a4..a8), w8, w4, or w4a16b128")
        block = match["block"]
        return cls(
            int(match["weight"]),
            int(match["activation"] or FLOAT_ACTIVATION_BITS),
            int(block) if block is not None else None,
        )

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantised."""
        return self.weight_bits > max(WEIGHT_BITS)

    @property
    def quantizes_activation(self) -> bool:
        """Whether the layer's input is an integer tensor."""
        return self.activation_bits in ACTIVATION_BITS

    @property
    def weight_key(self) -> str:
        """Name of the weight's own representation; formats that differ only in the activation share it."""
        block = f"b{self.weight_block}" if self.weight_block else ""
        return f"w{self.weight_bits}{block}"

    def __str__(self) -> str:
        if self.is_float:
            return f"fp{self.weight_bits}"
        block = f"b{self.weight_block}" if self.weight_block else ""
        return f"w{self.weight_bits}a{self.activation_bits}{block}"


FP32 = Format(32, 32)
FP16 = Format(16, 16)


def formats_from_text(text: str) -> tuple[Format, ...]:
    """Parse a comma-separated list, e.g. `w8a8,fp32`; duplicates are an error."""
    formats = tuple(Format.from_text(part) for part in text.split(",") if part.strip())
    if not formats:
        raise UserError("no format given: write for example --formats w8a8,fp32")
    if len(set(formats)) != len(formats):
        raise UserError(f"a format is named twice in {text!r}")
    return formats
