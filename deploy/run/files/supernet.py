"""`supernet.json`: what the training of a supernet found, for people and scripts."""

from __future__ import annotations

from calib.storage import AboveZero, Amount, Count, FileRecord, Fraction, Record


class OperationRow(Record, frozen=True, kw_only=True):
    """The accumulated Shapley value of one operation of the supernet, with the walks that it is the mean of."""

    group: str
    side: str
    operation: str
    score: float
    standard_error: Amount
    mean: float
    mean_standard_error: Amount
    walks: tuple[float, ...]
    marginals: tuple[float, ...]


class EstimateRow(Record, frozen=True, kw_only=True):
    """All operations' values, after `updates` estimates."""

    updates: Count
    truncated: Count
    evaluations: Count
    walks: Count
    operations: tuple[OperationRow, ...]


class EstimatedRow(Record, frozen=True, kw_only=True):
    """`smpq.estimators.result.Estimate` of one epoch, without the covariance."""

    schema: Count
    estimator: str
    seed: Count
    evaluations: Count
    truncated: Count
    stop_reason: str
    values: tuple[float, ...]
    standard_errors: tuple[Amount, ...]
    degrees_of_freedom: tuple[AboveZero | None, ...]
    covariance: None
    samples: tuple[Count, ...]


class EpochRow(Record, frozen=True, kw_only=True):
    """One epoch of the training; `estimates` sums up the Shapley values of this epoch, by value."""

    epoch: Count
    loss: float
    complexity: float
    seconds: dict[str, Amount]
    estimates: dict[str, EstimatedRow]


class SupernetFile(FileRecord, frozen=True, kw_only=True):
    """`supernet.json`: settings, history of the training, and what each operation contributes, by value."""

    NAME = "supernet.json"
    MADE_BY = "smpq train-supernet"

    settings: dict[str, str | int | float | bool | dict[str, tuple[str, ...] | str | int | float | bool | None] | None]
    history: tuple[EpochRow, ...]
    operations: Count
    shares: dict[str, dict[str, Fraction]]
    contributions: dict[str, EstimateRow]
