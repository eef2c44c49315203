"""The space of a run, and its costs, written into files and read back: who reads them needs no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from calib.formats.format import Format
from calib.network.units import Skipped, Unit
from calib.sizes import AxisRange
from deploy.files.search import CostRow, CostsFile, GroupRow, JoinRow, SizesRow, SkippedRow, SpaceFile, UnitRow
from smpq.problem.costs import CostModel
from smpq.problem.policy import Group, Join, Space


def file_from_space(
    space: Space, skipped: Sequence[Skipped], refused: Mapping[str, str], sizes: Mapping[str, AxisRange]
) -> SpaceFile:
    """Return what may be chosen, what was left out and why, and which sizes the inputs have."""
    return SpaceFile(
        groups={
            group.name: GroupRow(
                units=tuple(UnitRow(**asdict(unit)) for unit in group.units),
                formats=tuple(map(str, space.formats[group.name])),
            )
            for group in space.groups
        },
        joins=tuple(JoinRow(name=join.name, operands=join.operands, readers=join.readers) for join in space.joins),
        reference=str(space.reference),
        policies=space.size(),
        skipped=tuple(SkippedRow(path=entry.path, operator=entry.operator, reason=entry.reason) for entry in skipped),
        refused=dict(refused),
        sizes={name: SizesRow(**row._asdict()) for name, row in sizes.items()},
    )


def space_from_file(record: SpaceFile) -> Space:
    """Read back the space."""
    return Space(
        tuple(Group(name, tuple(_unit(unit) for unit in row.units)) for name, row in record.groups.items()),
        {name: tuple(map(Format.from_text, row.formats)) for name, row in record.groups.items()},
        Format.from_text(record.reference),
        tuple(Join(join.name, join.operands, join.readers) for join in record.joins),
    )


def file_from_costs(costs: Mapping[str, CostModel]) -> CostsFile:
    """Return costs that need no measurement; they have no parts for joins or transitions."""
    return CostsFile(
        costs={
            name: CostRow(
                fixed=model.fixed,
                float_total=model.float_total,
                parts={
                    group: {str(chosen): cost for chosen, cost in row.items()} for group, row in model.parts.items()
                },
            )
            for name, model in costs.items()
        }
    )


def costs_from_file(record: CostsFile) -> dict[str, CostModel]:
    """Read back the costs."""
    return {
        name: CostModel(
            name,
            row.fixed,
            {
                group: {Format.from_text(text): cost for text, cost in parts.items()}
                for group, parts in row.parts.items()
            },
            row.float_total,
        )
        for name, row in record.costs.items()
    }


def _unit(row: UnitRow) -> Unit:
    return Unit(**{name: getattr(row, name) for name in UnitRow.__struct_fields__})
