"""Which formats a target offers a layer."""

from __future__ import annotations

from calib.formats import Format
from calib.units import Unit
from deploy.targets.target import Target, capability
from smpq.policy import Space


def refusal(target: Target, unit: Unit, chosen: Format, *, size_only: bool) -> str | None:
    """Return why a unit cannot have a format on a target, None when it can.

    1. What is native is offered, and what nobody has seen yet (`unknown`): whoever names such a format wants to try it.
    2. What is stored small and computed in float is offered with `size_only` alone.
    """
    answer = capability(target, unit.operator, chosen, unit.in_features, unit.out_features)
    if answer.status in ("native", "unknown") or (answer.status == "dequantized" and size_only):
        return None
    if answer.status == "dequantized":
        return f"computed in float on {target.name} ({answer.note}); --size-only offers it all the same"
    return answer.note


def unknown_offers(target: Target, space: Space) -> list[str]:
    """Return one sentence for each format and kind of operator that is offered although nobody has seen what it becomes."""
    found: dict[str, str] = {}
    for group in space.groups:
        for chosen in space.formats[group.name]:
            for unit in group.units:
                answer = capability(target, unit.operator, chosen, unit.in_features, unit.out_features)
                if answer.status == "unknown":
                    found[f"{chosen} on {unit.operator}"] = answer.note
    return [f"{what} has not been seen on {target.name} ({note}): measure it on the device" for what, note in found.items()]
