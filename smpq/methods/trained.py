"""What the methods that train have in common: one training of a problem, which goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from smpq.methods.problem import SearchProblem, Solution

if TYPE_CHECKING:
    from smpq.training.bits.finder import Finder
    from smpq.training.bits.rungs import Rungs
    from smpq.training.bits.settings import BitSettings


def trained(
    problem: SearchProblem, make: Callable[[Rungs], Finder], kind: type[Finder], settings: BitSettings
) -> Solution:
    """Find bits by what `make` makes, of class `kind`, and train. Writes `training.safetensors` after every epoch, and
    goes on from there. Errors as `smpq.training.bits.train.train_bits`.
    """
    from smpq.training.bits.state import TrainingFile
    from smpq.training.bits.train import BitSubject, train_bits
    from smpq.training.finetune import each_tenth

    subject = BitSubject(
        problem.task,
        problem.traced,
        problem.original,
        problem.folded,
        problem.space,
        problem.ceilings,
        problem.fake_quantizer,
        problem.batches,
        problem.fingerprint,
    )
    with problem.progress.step("find bits and train"):
        found = train_bits(
            subject,
            make,
            kind,
            problem.training,
            settings,
            problem.files.file(TrainingFile.NAME),
            each_tenth(problem.progress.say, "training"),
            problem.progress.say,
            problem.device,
        )
    return Solution(found.policy, found.weights, found.notes)
