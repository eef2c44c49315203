"""A made-up network whose whole-engine latency is known exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

from calib.formats.format import FP32, Format
from calib.network.units import Unit
from smpq.problem.costs import is_integer
from smpq.problem.policy import Group, Policy, Space

W8A8 = Format.from_text("w8a8")
W4 = Format.from_text("w4a16b32")


def space(groups: int, *formats: Format) -> Space:
    """Linear layers of different sizes in a row; every group may have every format."""
    members = []
    for index in range(groups):
        inputs, outputs = 32 * (1 + index % 3), 64
        path, parameters = f"layer{index}", inputs * outputs
        unit = Unit(
            path, "linear", f"{path}.weight", None, (outputs, inputs), parameters, parameters, (path,), (f"x{index}",)
        )
        members.append(Group(path, (unit,)))
    return Space(tuple(members), {group.name: formats for group in members}, FP32)


def chain(of: Space) -> tuple[tuple[str, str], ...]:
    names = [group.name for group in of.groups]
    return tuple(pairwise(names))


def policies(of: Space) -> Iterator[Policy]:
    names = [group.name for group in of.groups]
    for formats in product(*(of.formats[name] for name in names)):
        yield Policy(dict(zip(names, formats, strict=True)))


@dataclass(frozen=True)
class Truth:
    """Ratio to the float engine: a part for every (group, format), and what each crossing costs."""

    parts: dict[str, dict[Format, float]]
    crossings: dict[tuple[str, str], float]

    @classmethod
    def drawn(cls, of: Space, seed: int, crossing: float = 0.02) -> Truth:
        generator = np.random.default_rng(seed)
        share = 1.0 / len(of.groups)
        effect = {
            chosen: -0.6 if is_integer(chosen) else -0.3 for chosen in of.formats[of.groups[0].name] if chosen != FP32
        }
        parts = {
            group.name: {FP32: 0.0}
            | {chosen: share * mean * generator.uniform(0.6, 1.3) for chosen, mean in effect.items()}
            for group in of.groups
        }
        return cls(parts, {pair: crossing * generator.uniform(0.5, 1.5) for pair in chain(of)})

    def ratio(self, policy: Policy) -> float:
        parts = sum(self.parts[group][chosen] for group, chosen in policy.formats.items())
        crossed = sum(cost for (a, b), cost in self.crossings.items() if is_integer(policy[a]) != is_integer(policy[b]))
        return 1.0 + parts + crossed
