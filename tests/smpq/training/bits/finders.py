"""The ways of finding bits that the tests try, on the small network."""

from __future__ import annotations

import torch

from smpq.training.bits.alignment import Alignment
from smpq.training.bits.choice import WidthChoice
from smpq.training.bits.drop import BitDrop
from smpq.training.bits.planes import PlaneLasso
from smpq.training.bits.settings import BsqSettings, CpqSettings, KaqSettings, SdqSettings
from smpq.training.bits.train import Found, train_bits
from smpq.training.settings import FineTuneSettings
from tests.smpq.training.bits.trainable import FORMATS, subject

HOW = FineTuneSettings(epochs=4, learning_rate=0.01, step_learning_rate=0.001)


def planes(path, task=None, how=HOW, formats=FORMATS, settings=None, device="cpu", **limits) -> Found:
    own = settings or BsqSettings(search=0.6)
    return train_bits(
        subject(task, formats, **limits),
        lambda rungs: PlaneLasso(rungs, own, how.learning_rate),
        PlaneLasso,
        how,
        own,
        path,
        device=device,
    )


def choice(path, task=None, how=HOW, formats=FORMATS, device="cpu", **limits) -> Found:
    own, given = SdqSettings(search=0.6), subject(task, formats, **limits)
    return train_bits(
        given,
        lambda rungs: WidthChoice(rungs, own, given.fake.calibration, how.seed),
        WidthChoice,
        how,
        own,
        path,
        device=device,
    )


def alignment(path, task=None, how=HOW, formats="w4a4", settings=None, device="cpu", **limits) -> Found:
    """Finds no bits, so it is not one of FINDERS."""
    own = settings or KaqSettings()
    return train_bits(
        subject(task, formats, **(limits or {"avg_bits": 4.0})),
        lambda rungs: Alignment(rungs, own),
        Alignment,
        how,
        own,
        path,
        device=device,
    )


def drop(path, task=None, how=HOW, formats=FORMATS, device="cpu", **limits) -> Found:
    own = CpqSettings(search=0.6)
    return train_bits(
        subject(task, formats, **limits), lambda rungs: BitDrop(rungs, own, how.seed), BitDrop, how, own, path,
        device=device,
    )  # fmt: skip


FINDERS = {"planes": planes, "choice": choice, "drop": drop}


def same(one: Found, other: Found) -> bool:
    mine, theirs = one.weights, other.weights
    return (
        one.policy == other.policy
        and all(torch.equal(tensor, theirs.parameters[name]) for name, tensor in mine.parameters.items())
        and all(
            torch.equal(weight.values, theirs.weights[path].values)
            and torch.equal(weight.scale, theirs.weights[path].scale)
            for path, weight in mine.weights.items()
        )
        and mine.quantizers == theirs.quantizers
        and (mine.before, mine.after) == (theirs.before, theirs.after)
        and mine.history == theirs.history
    )
