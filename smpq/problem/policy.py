"""Which format each group of layers gets, and which it may get."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from calib.errors import UserError
from calib.formats.format import Format
from calib.network.units import Unit
from smpq.files import PolicyFile


@dataclass(frozen=True)
class Group:
    """Units that share a format; the player of the game. Its name is the path of its first unit."""

    name: str
    units: tuple[Unit, ...]

    @property
    def parameters(self) -> int:
        """Weights of all units."""
        return sum(unit.parameters for unit in self.units)


@dataclass(frozen=True)
class Join:
    """A place where tensors meet (a sum, a concatenation) that may work on integers; its name is the graph's node.

    It can when all of `operands` do and at least one of `readers` does: names of groups, and of joins further up.
    """

    name: str
    operands: tuple[str, ...]
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Space:
    """The formats each group may take, the float format that the baseline uses everywhere, and the joins, in graph
    order.
    """

    groups: tuple[Group, ...]
    formats: Mapping[str, tuple[Format, ...]]
    reference: Format
    joins: tuple[Join, ...] = ()

    @property
    def units(self) -> tuple[Unit, ...]:
        """All units, group by group."""
        return tuple(unit for group in self.groups for unit in group.units)

    def group_of(self, path: str) -> Group:
        """Return the group that holds a unit; UserError when no unit has that path."""
        for group in self.groups:
            if any(path == unit.path or path in unit.aliases for unit in group.units):
                return group
        known = ", ".join(group.name for group in self.groups[:8])
        raise UserError(f"the model has no quantisable layer {path!r}; the first ones are {known}")

    def uniform(self, chosen: Format) -> Policy:
        """Return the policy that gives every group `chosen` where it is allowed, elsewhere the reference, or the first
        format where that is not allowed either. The float model is the reference everywhere.
        """
        if chosen == self.reference:
            return Policy(dict.fromkeys(self.formats, chosen))
        return Policy({name: _nearest(chosen, self.reference, row) for name, row in self.formats.items()})

    @property
    def offered(self) -> tuple[Format, ...]:
        """All formats that a group may have, each once, in the order in which they come."""
        return tuple(dict.fromkeys(chosen for row in self.formats.values() for chosen in row))

    def moves(self) -> int:
        """How many (group, format) there are besides the reference."""
        return sum(chosen != self.reference for row in self.formats.values() for chosen in row)

    def priced(self, group: str) -> tuple[Format, ...]:
        """Return the formats of a group and the reference, each once and always in the same order: those that a cost is
        needed of.
        """
        return tuple(dict.fromkeys((*self.formats[group], self.reference)))

    def size(self) -> int:
        """How many choices of formats there are; joins in float come on top (`every_policy`)."""
        total = 1
        for formats in self.formats.values():
            total *= len(formats)
        return total


def _nearest(chosen: Format, reference: Format, allowed: Sequence[Format]) -> Format:
    return next((each for each in (chosen, reference) if each in allowed), allowed[0])


@dataclass(frozen=True)
class Policy:
    """A format for every group, by group name, and the joins that stay in float although they could work on
    integers.
    """

    formats: Mapping[str, Format]
    float_joins: frozenset[str] = frozenset()

    def __getitem__(self, group: str) -> Format:
        return self.formats[group]

    def with_format(self, group: str, chosen: Format) -> Policy:
        """Return a copy in which one group has another format."""
        return replace(self, formats={**self.formats, group: chosen})

    def key(self) -> str:
        """A canonical text, the same for equal policies."""
        parts = [f"{name}={self.formats[name]}" for name in sorted(self.formats)]
        return ",".join(parts + [f"{name}=float" for name in sorted(self.float_joins)])

    def by_unit(self, groups: Iterable[Group]) -> dict[str, Format]:
        """Return unit path -> format."""
        return {unit.path: self.formats[group.name] for group in groups for unit in group.units}

    def to_file(self, groups: Iterable[Group]) -> PolicyFile:
        """Return the file form, keyed by module path so that a person can edit it."""
        formats = {path: str(chosen) for path, chosen in self.by_unit(groups).items()}
        return PolicyFile(policy=formats, float_joins=tuple(sorted(self.float_joins)))

    @classmethod
    def from_file(cls, record: PolicyFile, space: Space) -> Policy:
        """Read the file form; UserError names an unknown layer, a bad format, or a group given two formats."""
        formats: dict[str, Format] = {}
        for path, text in record.policy.items():
            group = space.group_of(path)
            chosen = Format.from_text(text)
            if formats.setdefault(group.name, chosen) != chosen:
                members = ", ".join(unit.path for unit in group.units)
                raise UserError(
                    f"{members} share a format, but the policy gives them {formats[group.name]} and {chosen}"
                )
        missing = [group.name for group in space.groups if group.name not in formats]
        if missing:
            raise UserError(
                f"the policy does not name {', '.join(missing[:5])}; every quantisable layer needs a format"
            )
        return canonical(cls(formats, _float_joins(record, space)), space)


def _float_joins(record: PolicyFile, space: Space) -> frozenset[str]:
    known = {join.name for join in space.joins}
    for name in record.float_joins:
        if name not in known:
            here = ", ".join(sorted(known)) or "here none"
            raise UserError(f"float_joins is a list of the places where tensors meet, {here}; {name!r} is none")
    return frozenset(record.float_joins)


def canonical(policy: Policy, space: Space) -> Policy:
    """Leave out the joins that could not work on integers anyway, so that equal plans are equal policies."""
    _, _, kept = integer_regions(policy, space.joins)
    return replace(policy, float_joins=frozenset(kept))


def every_policy(space: Space) -> Iterator[Policy]:
    """Yield every policy once, in its canonical form; of policies with the same formats, the one without joins in float
    comes first.
    """
    names = [group.name for group in space.groups]
    for row in product(*(space.formats[name] for name in names)):
        formats = dict(zip(names, row, strict=True))
        for kept in _placements(formats, space.joins):
            yield Policy(formats, kept)


def _placements(formats: Mapping[str, Format], joins: Sequence[Join]) -> Iterator[frozenset[str]]:
    """Yield the sets of joins that can be kept in float under these formats; `joins` in graph order."""
    integers = frozenset(name for name, chosen in formats.items() if chosen.reads_integers)
    waiting = [(0, integers, frozenset[str]())]
    while waiting:
        position, found, kept = waiting.pop()
        for number, join in enumerate(joins[position:], position):
            if not found.isdisjoint(join.readers) and found.issuperset(join.operands):
                waiting.append((number + 1, found, kept | {join.name}))
                found |= {join.name}
        yield kept


def integer_names(policy: Policy, joins: Iterable[Join]) -> set[str]:
    """Return the names of the groups and joins that work on integers under a policy; `joins` in graph order."""
    return integer_regions(policy, joins)[0]


def integer_regions(policy: Policy, joins: Iterable[Join]) -> tuple[set[str], set[str], set[str]]:
    """Return three sets of names: what computes on integers, what is in an integer region, and what is kept in float.

    1. A group computes on integers when its format quantises the activation.
    2. A join computes on integers when all its operands and at least one reader do, and the policy does not keep it in
       float.
    3. A join is in an integer region when rule 2 would hold without `float_joins`. So is each group of rule 1.
    4. The joins kept in float are those of `float_joins` that rule 2 excludes for that reason alone.

    `joins` in graph order.
    """
    found = {name for name, chosen in policy.formats.items() if chosen.reads_integers}
    among = set(found)
    kept: set[str] = set()
    for join in joins:
        if found.isdisjoint(join.readers):
            continue
        if among.issuperset(join.operands):
            among.add(join.name)
        if found.issuperset(join.operands):
            (kept if join.name in policy.float_joins else found).add(join.name)
    return found, among, kept
