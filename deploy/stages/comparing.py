"""Compare: what the files of several runs of one network say, side by side. Reads files alone, and writes none."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from calib.errors import UserError
from calib.formats.format import Format
from deploy.files.comparison import (
    ComparedAccuracy,
    ComparedLatency,
    ComparedLayer,
    ComparedRun,
    ComparedScores,
    Comparison,
)
from deploy.files.report import ReportFile
from deploy.files.verification import STAGES
from deploy.run.directory import Run
from deploy.stages.finetuning import trained_by
from deploy.stages.recorded import Recorded
from smpq.scoring.ranks import spearman

_FEWEST = 2


def compare(paths: Sequence[Path]) -> Comparison:
    """Read runs and compare them; UserError for fewer than two, for one without a plan, or of another network."""
    if len(paths) < _FEWEST:
        raise UserError("smpq compare needs two runs or more")
    runs = [Recorded(Run(path)) for path in paths]
    for read in runs:
        _ = read.record  # says what a directory is that is no run
        _check_network(runs[0], read)
    units = runs[0].space.units
    return Comparison(
        runs=tuple(map(_compared, runs)),
        layers=tuple(ComparedLayer(path=unit.path, parameters=unit.parameters) for unit in units),
        scores=tuple(
            _compared_scores(first, second, _moves(runs[first]), _moves(runs[second]))
            for first, second in combinations(range(len(runs)), 2)
        ),
    )


def _check_network(one: Recorded, other: Recorded) -> None:
    """Raise UserError unless both runs are about the same layers with the same weights."""
    first, second = ([(unit.path, unit.weight_shape) for unit in read.space.units] for read in (one, other))
    what = "layers" if first != second else "weights"
    if first != second or one.record.fingerprint.weights != other.record.fingerprint.weights:
        raise UserError(f"{one.run.path} and {other.run.path} are runs of different networks: their {what} differ")


def _compared(read: Recorded) -> ComparedRun:
    policy, latency = read.policy, read.latency
    formats = policy.by_unit(read.space.groups)
    return ComparedRun(
        path=str(read.run.path),
        method=trained_by(read.run) or (None if read.scores is None else read.scores.method),
        target=read.target.name,
        budget=None if read.budget is None else str(read.budget),
        data_free=read.record.settings.data_free,
        avg_bits=read.costs["avg_bits"].total(policy),
        size_bytes=read.costs["size"].total(policy),
        accuracy=_accuracy(read),
        latency=None
        if latency is None
        else ComparedLatency(ratio=latency.ratio, interval=latency.interval, machine=latency.machine),
        evaluations=None if read.scores is None else read.scores.evaluations,
        seconds=_seconds(read.run),
        formats=tuple(str(formats[unit.path]) for unit in read.space.units),
        bits=tuple(formats[unit.path].weight_bits for unit in read.space.units),
    )


def _accuracy(read: Recorded) -> ComparedAccuracy | None:
    """Return what the last stage reaches that had all samples; None where nothing was verified."""
    found = read.verification
    if found is None:
        return None
    for name in reversed(STAGES):
        stage = found.stages.get(name)
        if (
            stage is not None
            and stage.mean is not None
            and stage.interval is not None
            and stage.samples == found.samples
        ):
            return ComparedAccuracy(
                metric=found.metric,
                stage=name,
                samples=found.samples,
                mean=stage.mean,
                interval=stage.interval,
                change=found.whole.change,
                change_interval=found.whole.interval,
            )
    return None


def _seconds(run: Run) -> float | None:
    """Return what the command took that made the report; None where a report was made of what was there."""
    report = run.find(ReportFile)
    return sum(report.seconds.values()) if report is not None and report.seconds else None


Moves = dict[tuple[str, Format], float]


def _compared_scores(first: int, second: int, known: Moves, others: Moves) -> ComparedScores:
    shared = [move for move in known if move in others]
    within = [
        found
        for chosen in dict.fromkeys(chosen for _, chosen in shared)
        if (found := _correlated([move for move in shared if move[1] == chosen], known, others)) is not None
    ]
    return ComparedScores(
        first=first,
        second=second,
        moves=len(shared),
        spearman=_correlated(shared, known, others),
        within=statistics.fmean(within) if within else None,
    )


def _moves(read: Recorded) -> Moves:
    """Return the scores of a run. The float format that it compares with has none: it is 0 by definition."""
    return {
        (group, chosen): score.value
        for group, row in (read.scores.entries.items() if read.scores is not None else ())
        for chosen, score in row.items()
        if chosen != read.space.reference
    }


def _correlated(moves: Sequence[tuple[str, Format]], one: Moves, two: Moves) -> float | None:
    return spearman([one[move] for move in moves], [two[move] for move in moves])
