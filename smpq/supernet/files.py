"""`supernet.json`: what the training of a supernet found, for people and scripts."""

from __future__ import annotations

from calib.files.storage import Count, FileRecord, Fraction
from smpq.files import EpochRow, EstimateRow


class SupernetFile(FileRecord, frozen=True, kw_only=True):
    """`supernet.json`: settings, history of the training, and what each operation contributes, by value."""

    NAME = "supernet.json"
    MADE_BY = "smpq train-supernet"
    VERSION = 2

    settings: dict[str, str | int | float | bool | dict[str, tuple[str, ...] | str | int | float | bool | None] | None]
    history: tuple[EpochRow, ...]
    operations: Count
    shares: dict[str, dict[str, Fraction]]
    contributions: dict[str, EstimateRow]
