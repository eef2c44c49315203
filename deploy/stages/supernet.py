"""The paper's way to scores: train a supernet of all formats. Writes `supernet.safetensors`, `supernet.json` and `scores.json`."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from calib.data import training_batches
from calib.errors import UserError
from deploy.prepare import Prepared
from deploy.run.files.supernet import SupernetFile
from smpq.budget import Budget
from smpq.files import EpochRow, EstimateRow, ScoresFile
from smpq.scores import Scores
from smpq.supernet.network import Supernet, SupernetSubject
from smpq.supernet.scores import ESTIMATORS, supernet_scores
from smpq.supernet.state import SupernetState, SupernetStateFile
from smpq.supernet.training import EpochReport, SupernetSettings, train

SUPERNET = SupernetStateFile.NAME
GAME = "game"
METHODS = (GAME, *ESTIMATORS)
"""`game` scores the calibrated model's formats and trains nothing; the others train a supernet and score its operations."""


def train_supernet(prepared: Prepared, settings: SupernetSettings | None = None) -> tuple[Supernet, SupernetState]:
    """Train the run's supernet, or go on where it stopped. Writes `supernet.safetensors` after every epoch, and `supernet.json`.

    `settings` None stands for those of the supernet that is there, or the defaults; the seed is the run's. UserError when the task has no
    training data, and when the run's supernet was trained with other settings.
    """
    run = prepared.run
    next(training_batches(prepared.task, 0))  # before minutes of calibration, not after
    subject = _subject(prepared)
    with prepared.progress.step("make the supernet"):
        supernet = Supernet(subject, prepared.resources.evaluates_on)
    state = SupernetState.load(run.file(SUPERNET), supernet) if run.has(SUPERNET) else None
    if settings is None:
        settings = SupernetSettings.from_json(state.settings) if state is not None else SupernetSettings()
    settings = replace(settings, seed=prepared.settings.seed)

    def keep(found: SupernetState) -> None:
        found.save(run.file(SUPERNET))
        run.write(_record(supernet, found))

    def report(progress: EpochReport) -> None:
        cut = [f", {e.truncated} of {int(e.samples[0])} walks cut" for e in progress.estimates.values()]
        prepared.progress.say(f"supernet: epoch {progress.epoch} of {progress.epochs}, loss {progress.loss:.4f}{''.join(cut[:1])}")

    with prepared.progress.step("train the supernet"):
        state = train(supernet, prepared.batches, settings, state, keep, report)
    state.restore(supernet)
    run.write(_record(supernet, state))
    return supernet, state


def score_by_supernet(prepared: Prepared, method: str) -> Scores:
    """Score by a trained supernet, which is trained if the run has none. Writes `scores.json`.

    UserError when the run has scores of another method.
    """
    check_scores(prepared, method)
    scores = supernet_scores(method, *train_supernet(prepared))
    prepared.run.write(scores.to_file())
    return scores


def check_method(method: str, budget: Budget) -> None:
    """Raise UserError for an unknown method, or one that has no answer to the budget."""
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    if method != GAME and budget.limit("latency") is not None:
        raise UserError(
            f"--method {method} chooses by the supernet's scores alone, without engines: give a budget on size, avg_bits or bops, or use "
            f"--method {GAME}"
        )


def check_scores(prepared: Prepared, method: str) -> None:
    """Raise UserError when the run has scores of another method."""
    known = prepared.run.find(ScoresFile)
    if known is not None:
        found = next((name for name, said in ESTIMATORS.items() if said == known.estimator), GAME)
        if found != method:
            path = prepared.run.file(known.NAME)
            raise UserError(f"{path} is of method {found}, now {method} is asked for: use another --out, or delete it")


def _subject(prepared: Prepared) -> SupernetSubject:
    settings, space = prepared.settings, prepared.space
    formats = ";".join(f"{group.name}={','.join(map(str, space.formats[group.name]))}" for group in space.groups)
    scheme = prepared.target.activation_scheme
    return SupernetSubject(
        prepared.task,
        prepared.traced,
        prepared.original,
        prepared.folded,
        space,
        prepared.fake_quantizer.calibration,
        scheme,
        f"{prepared.fingerprint}|{formats}|{settings.observer}|{settings.rounding}|{scheme}",
    )


def _record(supernet: Supernet, state: SupernetState) -> SupernetFile:
    shares = supernet.shares()
    return SupernetFile(
        settings=dict(state.settings),
        history=msgspec.convert(list(state.history), tuple[EpochRow, ...]),
        operations=len(supernet.operations),
        shares={
            f"{group} {side}": {operation.name: share for operation, share in zip(row, shares[group, side], strict=True)}
            for (group, side), row in supernet.rows.items()
        },
        contributions={value: msgspec.convert(found.to_json(), EstimateRow) for value, found in state.contributions.items()},
    )
