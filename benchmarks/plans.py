"""Plans that were not searched: random ones and hand-made ones, for comparing a search with them."""

import numpy as np
from loop import near

from calib.formats.format import Format
from calib.network.units import Unit
from deploy.latency.designs import random_policies
from smpq.problem.groups import Group
from smpq.problem.policy import Policy, Space, canonical


def random_plans(space: Space, count: int, centres: list[Policy], seed: int = 1) -> dict[str, Policy]:
    """Return random plans by name: every second one scattered over the space, the others near one of `centres`."""
    generator, found = np.random.default_rng(seed), {}
    scattered = random_policies(space, count, 1000)
    while len(found) < count:
        centre = centres[len(found) // 2 % len(centres)]
        drawn = scattered.pop() if scattered and len(found) % 2 else near(space, centre, 1.0, generator)
        found.setdefault(canonical(drawn, space).key(), canonical(drawn, space))
    return {f"random {index + 1}": policy for index, policy in enumerate(found.values())}


def handmade_plans(space: Space, formats: list[Format], count: int) -> dict[str, Policy]:
    """Return `count` plans as people make them by hand; the first of the integer `formats` is the one most are made
    with.
    """
    found = all_handmade_plans(space, formats)
    assert len(found) >= count, "too few different plans"
    return dict(list(found.items())[:count])


def all_handmade_plans(space: Space, formats: list[Format]) -> dict[str, Policy]:
    """Return all the different ones."""
    groups = list(space.groups)
    by_macs = sorted(groups, key=lambda group: -sum(unit.macs for unit in group.units))
    by_size = sorted(groups, key=lambda group: -sum(unit.parameters for unit in group.units))
    half, quarter, ends = len(groups) // 2, max(len(groups) // 4, 1), {groups[0].name, groups[-1].name}
    chosen = {
        "all but the first and the last layer": [group for group in groups if group.name not in ends],
        "all but the first layer": groups[1:],
        "all but the last layer": groups[:-1],
        "the half with most multiplications": by_macs[:half],
        "the half with most weights": by_size[:half],
        "the quarter with most multiplications": by_macs[:quarter],
        "the second half": groups[half:],
        "the first half": groups[:half],
        "without grouped convolutions": [group for group in groups if not any(map(_grouped, group.units))],
        "all but the quarter with fewest multiplications": by_macs[: len(groups) - quarter],
        "the three quarters with most weights": by_size[: len(groups) - quarter],
    }
    named = {f"uniform {form}": space.uniform(form) for form in formats}
    named |= {name: _with(space, picked, formats[0]) for name, picked in chosen.items()}
    found: dict[str, tuple[str, Policy]] = {}
    for name, policy in named.items():
        found.setdefault(policy.key(), (name, policy))
    return dict(found.values())


def _grouped(unit: Unit) -> bool:
    """Whether each output sees some of the inputs only, as in a depthwise convolution."""
    return (
        unit.operator.startswith("conv") and unit.weight_shape[1] < unit.weight_shape[0] and unit.weight_shape[1] == 1
    )


def _with(space: Space, groups: list[Group], chosen: Format) -> Policy:
    names = {group.name for group in groups}
    picks = {
        group.name: chosen if group.name in names and chosen in space.formats[group.name] else space.reference
        for group in space.groups
    }
    return canonical(Policy(picks), space)
