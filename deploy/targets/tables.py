"""Targets and their capability tables as text and as plain values, for `smpq targets`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from calib.formats.format import Format
from deploy.targets.families import FAMILIES
from deploy.targets.rules import OPERATORS, CapabilityRow
from deploy.targets.target import (
    Target,
    capability,
    compute_capabilities_of,
    device_names,
    table,
    target_from_name,
    versioned_names,
)

LEGEND = (
    "The first rule that fits decides. native: there is a kernel for it; size only: stored small and computed in "
    "float, offered with "
    "--size-only; unknown: offered, but nobody has seen what becomes of it; may fail: the runtime may refuse the whole "
    "engine over it, so the first engines that "
    "are measured keep it in float; refused: not offered. "
    "How we know: built (the kernels were read), measured (engines were timed), docs (it is written), "
    "inferred (from another runtime or version)."
)
_WORDS = {"dequantized": "size only"}
_USUAL_FORMATS = (
    "w8a8", "w7a8", "w4a8", "w8a16", "w4a16", "w8a16b128", "w4a16b32", "w4a16b128", "w2a16b128", "fp8", "wfp8a16",
    "fp16", "fp32",
)  # fmt: skip
_IN_FEATURES = 1024
_FRAME = 3
"""Columns of text that a column of a table needs besides its words."""


def overview() -> Table:
    """Return one line for each target that can be named."""
    grid = Table(title="targets", title_justify="left")
    grid.add_column("name", overflow="fold", min_width=max(map(len, (*FAMILIES, *device_names()))))
    for column in ("what it is", "float baseline", "formats offered", "GPUs (--sm)"):
        grid.add_column(column, overflow="fold")
    for name in (*FAMILIES, *device_names()):
        target = target_from_name(name, look=False)
        versions = [each for each in versioned_names() if each.startswith(f"{name}-")]
        names = ", ".join([name, *versions])
        gpus = target.compute_capabilities if name in device_names() else tuple(compute_capabilities_of(target))
        formats = ", ".join(" or ".join(map(str, choice)) for choice in target.default_choices)
        grid.add_row(names, target.description, str(target.reference), formats, ", ".join(gpus))
    return grid


def summary(target: Target, width: int) -> Table:
    """Return what becomes of the usual formats on every operator, for a layer with 1024 inputs: a column for each
    format, or where these need more than `width` columns of text, a row for each format and what becomes of it.
    """
    where = [target.reference, *([f"version {target.version}"] if target.version else []), *target.compute_capabilities]
    heading = f"{target.name} (float baseline {', '.join(map(str, where))}): {target.description}"
    answers = {text: _answers(target, Format.from_text(text)) for text in _USUAL_FORMATS}
    rows = [["", *answers], *([operator, *(row[operator] for row in answers.values())] for operator in OPERATORS)]
    if sum(max(map(len, column)) + _FRAME for column in zip(*rows, strict=True)) >= width:
        return _by_format(heading, answers)
    grid = Table(*rows[0], title=heading, title_justify="left")
    for row in rows[1:]:
        grid.add_row(*row)
    return grid


def _answers(target: Target, chosen: Format) -> dict[str, str]:
    """Return what becomes of a format, by operator."""
    found = {operator: capability(target, operator, chosen, _IN_FEATURES).status for operator in OPERATORS}
    return {operator: _WORDS.get(status, status) for operator, status in found.items()}


def _by_format(heading: str, answers: Mapping[str, Mapping[str, str]]) -> Table:
    grid = Table("format", "becomes", "on", title=heading, title_justify="left")
    for text, row in answers.items():
        statuses = list(dict.fromkeys(row.values()))
        for status in statuses:
            operators = [operator for operator, found in row.items() if found == status]
            grid.add_row(
                text if status == statuses[0] else "",
                status,
                ", ".join(operators) if len(statuses) > 1 else "every operator",
                end_section=status == statuses[-1],
            )
    return grid


def rules(target: Target) -> Table:
    """Return the rules that concern a target, with how each is known."""
    grid = Table(title=f"rules of {target.name}", title_justify="left")
    for column in ("operators", "formats", "status", "note", "only for", "how we know"):
        grid.add_column(column, overflow="fold")
    for row in table(target):
        grid.add_row(
            ", ".join(row.operators),
            ", ".join(row.formats),
            f"{_WORDS.get(row.status, row.status)}{', may fail' if row.may_fail else ''}",
            row.note,
            _limits(row),
            f"{row.basis}: {row.source}",
        )
    return grid


def described(target: Target) -> dict[str, Any]:
    """Return a target and its rules as plain values."""
    return {
        "description": target.description,
        "backend": target.backend,
        "runtime": target.runtime,
        "version": target.version,
        "compute_capabilities": list(target.compute_capabilities),
        "providers": list(target.providers),
        "reference": str(target.reference),
        "default_formats": [str(format_) for format_ in target.default_formats],
        "timed": target.timed,
        "rules": [row.to_json() for row in table(target)],
    }


def _limits(row: CapabilityRow) -> str:
    limits = [*row.compute_capabilities]
    if row.versions:
        limits.append(f"versions {row.versions}")
    if row.several_blocks:
        limits.append("several blocks")
    if row.odd_outputs:
        limits.append("an odd number of outputs")
    if row.fewer_channels_than is not None:
        limits.append(f"fewer than {row.fewer_channels_than} channels")
    if row.outputs_not_divisible_by is not None:
        limits.append(f"outputs that {row.outputs_not_divisible_by} does not divide")
    if row.several_calls:
        limits.append("several calls")
    if row.single_row:
        limits.append("a single row")
    if row.even_elements:
        limits.append("an even number of 4-bit weights")
    return ", ".join(limits)
