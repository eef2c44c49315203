"""Rules of the capability tables: which format on which operator, what becomes of it, and how we know."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from calib.formats.format import Format

Status = Literal["native", "dequantized", "unknown", "refused"]
Basis = Literal["built", "measured", "docs", "inferred"]

SCHEMA_VERSION = 1
CONVOLUTIONS = tuple(f"{kind}conv{dims}d" for dims in (1, 2, 3) for kind in ("", "depthwise_", "grouped_"))
LINEARS = ("linear", "linear_nd")
EMBEDDINGS = ("embedding", "tied_embedding")
OPERATORS = CONVOLUTIONS + LINEARS + EMBEDDINGS
FROM_BEST_TO_WORST: tuple[Status, ...] = ("native", "dequantized", "unknown", "refused")

_KINDS = {
    "convolutions": CONVOLUTIONS,
    "linears": LINEARS,
    "embeddings": EMBEDDINGS,
    **{operator: (operator,) for operator in OPERATORS},
}
_BASES = ("built", "measured", "docs", "inferred")


@dataclass(frozen=True)
class Capability:
    """What becomes of a format.

    1. `native`: there is a kernel that computes in it.
    2. `dequantized`: stored small, computed in float; saves bytes, not time.
    3. `unknown`: the runtime takes it as far as anyone says, and nobody has seen which kernel it becomes.
    4. `refused`: it does not build, is not what the name says, or there is a better format for the same cost. The note
       says which.

    `stored_as` is the format whose integer types hold it, where that is another one: `w7a8` is stored and computed as
    `w8a8`. `may_fail`: on some GPUs the whole engine does not build. `measured`: the answer is about times of engines,
    and no kernel's name tells it.
    """

    status: Status
    note: str
    stored_as: Format | None = None
    may_fail: bool = False
    measured: bool = False


@dataclass(frozen=True)
class LayerKind:
    """What rules ask of a layer besides its format; None is not known, and no rule that asks for it fits then.

    `operator` is one of `OPERATORS`, or another, which stays float. `in_features` is the length of the reduction,
    `out_features` the number of outputs or output channels, `in_channels` the input channels of a group of a
    convolution. `rows` is how many rows a linear layer multiplies at once, `calls` how many calls multiply by its
    weight.
    """

    operator: str
    in_features: int
    out_features: int | None = None
    in_channels: int | None = None
    rows: int | None = None
    calls: int | None = None


@dataclass(frozen=True)
class CapabilityRow:
    """One rule of a capability table; the first rule that fits an operator and a format decides.

    1. `operators` are kinds of operator, `convolutions`, `linears`, `embeddings`, or `*` for all of them and for those
       that are never quantised.
    2. `formats` are patterns: `w8a8`, `w{4,8}a16`, `w{2..8}a{4..8}`, `w4a16b*`; or `*` alone for all formats.
    3. `basis` is how we know: `built` (the builder's kernels were read), `measured` (engines were timed), `docs` (it is
       written in public documents or source), `inferred` (from another runtime or version); `source` says from where.
    4. `several_blocks`: the rule leaves out a single block as long as the input dimension.
    5. `even_elements`: the weight must have an even number of elements when it has 4 bits.
    6. `odd_outputs`: the rule is only for layers with an odd number of outputs.
    7. `fewer_channels_than`: only for layers with fewer input channels of a group, or fewer outputs;
       `outputs_not_divisible_by`: only for layers whose outputs it does not divide; `single_row`: only for linear
       layers that multiply one row; `several_calls`: only for weights that several calls multiply by.
    8. `may_fail`: the runtime may refuse the whole engine over such a layer; the status is `unknown`.
    9. `compute_capabilities` and `versions` (`<10.12`, `>=10.3,<11`): the rule is only for these GPUs and versions of
       the runtime, so it needs to be known which they are; empty means all.
    """

    operators: tuple[str, ...]
    formats: tuple[str, ...]
    status: Status
    note: str
    basis: Basis
    source: str
    stored_as: Format | None = None
    several_blocks: bool = False
    even_elements: bool = False
    odd_outputs: bool = False
    fewer_channels_than: int | None = None
    outputs_not_divisible_by: int | None = None
    single_row: bool = False
    several_calls: bool = False
    may_fail: bool = False
    compute_capabilities: tuple[str, ...] = ()
    versions: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the rule as it is written in the table's file."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        lists = {name: list(plain[name]) for name in ("operators", "formats", "compute_capabilities")}
        return {**plain, **lists, "stored_as": str(self.stored_as) if self.stored_as is not None else None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CapabilityRow:
        """Read one rule of a table's file; a wrong one is a bug in the package, hence ValueError."""
        tuples = {name: tuple(data.get(name, ())) for name in ("operators", "formats", "compute_capabilities")}
        wrong = (
            set(data) - set(cls.__dataclass_fields__)
            or set(tuples["operators"]) - {*_KINDS, "*"}
            or data["status"] not in FROM_BEST_TO_WORST
            or data["basis"] not in _BASES
            or (data.get("may_fail", False) and data["status"] != "unknown")
            or any(
                not _is_count(data[name])
                for name in ("fewer_channels_than", "outputs_not_divisible_by")
                if name in data
            )
        )
        if wrong:
            raise ValueError(f"wrong rule in a capability table: {dict(data)!r}")
        return cls(**{**data, **tuples, "stored_as": _format_or_none(data.get("stored_as"))})

    def fits(self, layer: LayerKind, format_: Format) -> bool:
        """Whether the rule is about this layer and format."""
        if "*" not in self.operators and not any(layer.operator in _KINDS[kind] for kind in self.operators):
            return False
        if self.several_blocks and format_.weight_block == layer.in_features:
            return False
        return self._fits_sizes(layer) and any(_pattern(text).fullmatch(str(format_)) for text in self.formats)

    def _fits_sizes(self, layer: LayerKind) -> bool:
        outputs, channels = layer.out_features, layer.in_channels
        if self.odd_outputs and (outputs is None or outputs % 2 == 0):
            return False
        few = self.fewer_channels_than
        if few is not None and (outputs is None or outputs >= few) and (channels is None or channels >= few):
            return False
        divisor = self.outputs_not_divisible_by
        if divisor is not None and (outputs is None or outputs % divisor == 0):
            return False
        if self.several_calls and (layer.calls or 1) == 1:
            return False
        return not self.single_row or layer.rows == 1

    def concerns(self, compute_capabilities: Sequence[str], version: str | None) -> bool:
        """Whether the rule is for one of these GPUs and for this version of the runtime (None when it is not known)."""
        if self.compute_capabilities and not set(self.compute_capabilities) & set(compute_capabilities):
            return False
        return not self.versions or (version is not None and version_fits(version, self.versions))


def version_fits(version: str, condition: str) -> bool:
    """Whether a version such as `10.3` or `10.16.0.72` meets all parts of a condition such as `>=10.3,<11`; `<` and
    `>=` are known.
    """
    ours = _numbers(version)
    for part in condition.split(","):
        if part.startswith(">="):
            met = ours >= _numbers(part[2:])
        elif part.startswith("<"):
            met = ours < _numbers(part[1:])
        else:
            raise ValueError(f"wrong version condition in a capability table: {condition!r}")
        if not met:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


def _format_or_none(text: str | None) -> Format | None:
    return Format.from_text(text) if text is not None else None


@cache
def _pattern(text: str) -> re.Pattern[str]:
    """Turn `w{2..4}a{4,8}b*` into a regular expression."""

    def choices(match: re.Match[str]) -> str:
        first, dots, last = match[1].partition("..")
        numbers = [str(number) for number in range(int(first), int(last) + 1)] if dots else first.split(",")
        return f"(?:{'|'.join(numbers)})"

    if text == "*":
        return re.compile(".*")
    return re.compile(re.sub(r"\{([^}]*)\}", choices, text).replace("*", r"\d+"))
