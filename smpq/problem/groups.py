"""Which units must share a format, and what each group may take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from calib.errors import UserError
from calib.formats.format import Format
from calib.network.graph import TracedModel
from calib.network.nodes import operator_name
from calib.network.units import Unit
from smpq.problem.pins import Pin, check_pins, pinned
from smpq.problem.policy import Group, Join, Space


def find_groups(traced: TracedModel, units: Sequence[Unit]) -> tuple[Group, ...]:
    """Tie units that a runtime executes as one, or whose results meet before anything else touches them.

    1. Units that read the same tensor (query, key and value; a branch and its projection) share a format: the tensor is
       then quantised once.
    2. Units whose results are the two operands of an add share one.
    3. A unit that runs several times is one unit already; everything else is a group of its own.
    """
    parent = {unit.path: unit.path for unit in units}

    def find(path: str) -> str:
        while parent[path] != path:
            path = parent[path]
        return path

    by_tensor: dict[str, str] = {}
    by_call: dict[str, str] = {}
    for unit in units:
        for tensor, call in zip(unit.inputs, unit.calls, strict=True):
            by_call[call] = unit.path
            if tensor in by_tensor:
                parent[find(unit.path)] = find(by_tensor[tensor])
            by_tensor.setdefault(tensor, unit.path)
    for node in traced.graph.nodes:
        operands = [by_call[operand.name] for operand in node.all_input_nodes if operand.name in by_call]
        if operator_name(node) == "add" and len(operands) == 2:
            parent[find(operands[1])] = find(operands[0])
    members: dict[str, list[Unit]] = {}
    for unit in units:
        members.setdefault(find(unit.path), []).append(unit)
    return tuple(Group(group[0].path, tuple(group)) for group in members.values())


def space_from_formats(
    groups: tuple[Group, ...],
    formats: Sequence[Format],
    reference: Format,
    allowed: Callable[[Unit, Format], str | None],
    joins: tuple[Join, ...] = (),
    pins: Sequence[Pin] = (),
    choices: Sequence[Sequence[Format]] = (),
) -> tuple[Space, dict[str, str]]:
    """Return the space, and what was refused: `group: format` -> reason.

    `allowed` returns None, or why a unit cannot have a format. A group for which nothing in the list is allowed gets
    the reference format, which every target runs. `pins` leave less of the list, or say what a group has; UserError
    where that is not allowed. Of each of `choices`, formats of the list, a group gets the first that it can have; what
    was refused of a choice is told where nothing of it is left.
    """
    check_pins(groups, pins)
    offered: dict[str, tuple[Format, ...]] = {}
    refused: dict[str, str] = {}
    for group in groups:
        candidates = pinned(group, formats, reference, pins)
        reasons = {chosen: _first_reason(group, chosen, allowed) for chosen in candidates}
        kept = [chosen for chosen, reason in reasons.items() if reason is None]
        for choice in choices:
            left = [chosen for chosen in kept if chosen in choice]
            kept = [chosen for chosen in kept if chosen not in left[1:]]
            if left:
                reasons = {chosen: reason for chosen, reason in reasons.items() if chosen not in choice}
        refused |= {f"{group.name}: {chosen}": reason for chosen, reason in reasons.items() if reason is not None}
        if not kept and candidates != tuple(formats):
            raise UserError(
                f"{group.name} cannot have what it is pinned to: {refused[f'{group.name}: {candidates[0]}']}"
            )
        offered[group.name] = tuple(kept) or (reference,)
    if all(choices == (reference,) for choices in offered.values()) and tuple(formats) != (reference,):
        raise UserError(f"none of the formats can be used on any layer; for example {next(iter(refused.items()))}")
    return Space(groups, offered, reference, joins), refused


def _first_reason(group: Group, chosen: Format, allowed: Callable[[Unit, Format], str | None]) -> str | None:
    return next((reason for unit in group.units if (reason := allowed(unit, chosen)) is not None), None)
