"""Which formats a target offers a layer."""

from __future__ import annotations

from calib.formats.format import Format
from calib.network.units import Unit
from deploy.targets.rules import LINEARS, Capability, LayerKind
from deploy.targets.target import Target, capability_of
from smpq.problem.policy import Space


def offer(target: Target, unit: Unit, chosen: Format, batch: int | None = None) -> Capability:
    """Return what becomes of a format on a unit of an engine for `batch` samples; None when the number is free or not
    known.
    """
    calls, rows = len(unit.calls), None
    if batch is not None and unit.operator in LINEARS:
        rows = batch * unit.macs // (unit.parameters * calls)  # what multiplies a matrix may hold many rows a sample
    layer = LayerKind(unit.operator, unit.in_features, unit.out_features, unit.in_channels, rows, calls)
    return capability_of(target, layer, chosen)


def refusal(target: Target, unit: Unit, chosen: Format, *, size_only: bool) -> str | None:
    """Return why a unit cannot have a format on a target, None when it can.

    1. What is native is offered, and what nobody has seen yet (`unknown`): whoever names such a format wants to try it.
    2. What is stored small and computed in float is offered with `size_only` alone.
    """
    answer = offer(target, unit, chosen)
    if answer.status in ("native", "unknown") or (answer.status == "dequantized" and size_only):
        return None
    if answer.status == "dequantized":
        return f"computed in float on {target.name} ({answer.note}); --size-only offers it all the same"
    return answer.note


def unknown_offers(target: Target, space: Space, batch: int | None = None) -> list[str]:
    """Return one sentence for each format, kind of operator and reason where nobody has seen what becomes of what is
    offered.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for group in space.groups:
        for chosen in space.formats[group.name]:
            for unit in group.units:
                answer = offer(target, unit, chosen, batch)
                if answer.status == "unknown":
                    found.setdefault((f"{chosen} on {unit.operator}", answer.note), []).append(unit.path)
    return [
        f"{what} has not been seen on {target.name} ({note}; {_listed(paths)}): measure it on the device"
        for (what, note), paths in found.items()
    ]


def may_fail(target: Target, space: Space, batch: int | None = None) -> frozenset[tuple[str, Format]]:
    """Return the (group, format) pairs over which the runtime may refuse the whole engine."""
    return frozenset(
        (group.name, chosen)
        for group in space.groups
        for chosen in space.formats[group.name]
        if any(offer(target, unit, chosen, batch).may_fail for unit in group.units)
    )


def _listed(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
