"""Suspects of a refusal that blames no layer, and the engine that narrows them down. Ours."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from calib.formats.format import Format
from smpq.problem.policy import Policy, Space, canonical

FormatOfGroup = tuple[str, Format]
"""A group and its format."""


def suspects(
    refused: Policy, built: Iterable[Policy], space: Space, doubtful: Collection[FormatOfGroup]
) -> tuple[FormatOfGroup, ...]:
    """Return the formats of a refused policy that no engine that was built has, without float ones, in graph order.

    `doubtful` are formats over which the runtime is known to refuse engines. Where some suspects are doubtful, only
    those are returned.
    """
    sound = {choice for policy in built for choice in policy.formats.items()}
    left = [(group.name, refused[group.name]) for group in space.groups]
    left = [choice for choice in left if choice[1] != space.reference and choice not in sound]
    return tuple(choice for choice in left if choice in doubtful) or tuple(left)


def halved(refused: Policy, accused: Sequence[FormatOfGroup], space: Space) -> Policy | None:
    """Return the refused policy with the second half of what is accused in float; None where that is not offered.

    If its engine is built, the fault is in the second half, else in the first.
    """
    second = [group for group, _ in accused[(len(accused) + 1) // 2 :]]
    if not second or any(space.reference not in space.formats[group] for group in second):
        return None
    return canonical(Policy({**refused.formats, **dict.fromkeys(second, space.reference)}, refused.float_joins), space)


def without(space: Space, blamed: Collection[FormatOfGroup]) -> Space:
    """Return the space with what is blamed left out; a group that keeps no format gets the float one."""
    formats = {
        name: tuple(chosen for chosen in row if (name, chosen) not in blamed) or (space.reference,)
        for name, row in space.formats.items()
    }
    return replace(space, formats=formats)
