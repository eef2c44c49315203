"""The methods that train a supernet and score its operations: by their Shapley values (SMPQ; in the mixture of all
operations, or in policies), or by alpha (DMPQ).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from calib.errors import UserError
from smpq.methods.base import Need, method
from smpq.methods.problem import Objective, SearchProblem

if TYPE_CHECKING:
    from smpq.supernet.files import SupernetFile
    from smpq.supernet.network import Supernet, SupernetSubject
    from smpq.supernet.settings import SupernetSettings
    from smpq.supernet.state import SupernetState
    from smpq.supernet.training import EpochReport

_KINDS = {True: "by paths (--paths)", False: "as a mixture (--mixture)"}


@method(
    "smpq",
    paper="Kang et al. IJCAI 2025 (arXiv 2508.03002)",
    cost="10 epochs of training, and in the second half of them 10 walks over all operations",
    needs=(Need.LABELS, Need.TRAINING_DATA, Need.GRADIENTS),
    searched=False,
    latency=False,
    finetuned=True,
)
def smpq(problem: SearchProblem) -> Objective:
    """Shapley values of the operations of a trained supernet.

    Its scores decide alone: the policy is meant for training, and the value of the calibrated model is not what it is
    for.

    The authors' code was not published. The abstract leaves open the widths, the quantisers, the number of samples, and
    how the budget enters. Chosen: mixtures as in EdMIPS, walks and momentum as in Shapley-NAS (arXiv 2206.09811), and
    the knapsack of all methods.
    """
    from smpq.supernet.scores import shapley_scores

    return Objective(shapley_scores(*train_supernet(problem, paths=False)))


@method(
    "dmpq",
    paper="EdMIPS, Cai and Vasconcelos CVPR 2020 (arXiv 2004.05795)",
    cost="as smpq, whose supernet it shares",
    needs=(Need.LABELS, Need.TRAINING_DATA, Need.GRADIENTS),
    searched=False,
    latency=False,
    finetuned=True,
)
def dmpq(problem: SearchProblem) -> Objective:
    """Softmax of the parameters alpha that a trained supernet mixes its operations with."""
    from smpq.supernet.scores import softmax_scores

    return Objective(softmax_scores(*train_supernet(problem, paths=False)))


@method(
    "smpq-paths",
    paper="this project, after Kang et al. IJCAI 2025 (arXiv 2508.03002) and Guo et al. ECCV 2020 (arXiv 1904.00420)",
    cost="4 epochs of training, and one for each of 400 evaluations (--evaluations)",
    needs=(Need.LABELS, Need.TRAINING_DATA, Need.GRADIENTS),
    searched=False,
    latency=False,
    finetuned=True,
)
def smpq_paths(problem: SearchProblem) -> Objective:
    """Shapley values of formats in the policies of a supernet whose training draws one operation of each layer.

    SMPQ's values are of operations that leave a mixture of all others. The mixture hardly misses one of them: on
    ResNet-20 with 2 to 4 bits most of these values are within two standard errors of 0, and an operation that is good
    in a mixture may be bad alone. Here each batch trains one policy, drawn at random (single-path one-shot), and what
    an operation contributes is the difference between two policies, estimated as `shapley` does. BatchNorm uses the
    statistics of each batch.
    """
    from smpq.methods.shapley import paired_walks
    from smpq.supernet.paths import PathValue, check_judged
    from smpq.value.evaluate import Evaluator
    from smpq.value.journal import Journal

    # before hours of training, not after
    check_judged(problem.task, problem.judging, problem.value_name, problem.folded)
    supernet, _ = train_supernet(problem, paths=True)
    value = PathValue(supernet, problem.judging, problem.value_name)
    journal = Journal(problem.files.file("journal.sqlite"))
    return Objective(paired_walks(problem, Evaluator(value, journal, problem.fingerprint)))


def train_supernet(
    problem: SearchProblem, settings: SupernetSettings | None = None, *, paths: bool | None = None
) -> tuple[Supernet, SupernetState]:
    """Train the run's supernet, or go on where it stopped.

    Writes `supernet.safetensors` after every epoch, and `supernet.json`.
    `settings` None stands for those of the supernet that is there, or the defaults; the seed is the problem's.
    `paths` is how it must be trained, None for either. UserError when the task has no training data, and when the run's
    supernet was trained with other settings, or not in the way that is needed.
    """
    from calib.batches import training_content
    from calib.task import SetTask
    from smpq.supernet.network import Supernet
    from smpq.supernet.settings import PATHS, SupernetSettings
    from smpq.supernet.state import SupernetState, SupernetStateFile
    from smpq.supernet.training import train
    from smpq.training.lsq import check_learned

    files, progress, name = problem.files, problem.progress, SupernetStateFile.NAME
    # before minutes of calibration, not after
    check_learned(chosen for row in problem.space.formats.values() for chosen in row)
    training = training_content(problem.task)
    subject = _subject(problem, training)
    with progress.step("make the supernet"):
        supernet = Supernet(subject, problem.device)
    state = SupernetState.load(files.file(name), supernet) if files.has(name) else None
    if settings is None:
        defaults = PATHS if paths else SupernetSettings()
        settings = SupernetSettings.from_json(state.settings) if state is not None else defaults
    if paths is not None and settings.paths != paths:
        raise UserError(
            f"the supernet of this run was trained {_KINDS[settings.paths]}, and the method needs one that is trained "
            f"{_KINDS[paths]}: use another --out, or delete {files.file(name)}"
        )
    settings = replace(settings, seed=problem.seed)
    if (
        isinstance(problem.task, SetTask)
        and not settings.paths
        and (settings.gamma or "metric" in settings.game.values)
    ):
        raise UserError(
            f"walks through a supernet need a value of each sample, and {problem.task.metric_name} is a figure of all "
            "samples together: use --contribution kl or loss, with --gamma 0"
        )

    def keep(found: SupernetState) -> None:
        found.save(files.file(name))
        files.write(_record(supernet, found))

    def report(now: EpochReport) -> None:
        cut = [f", {e.truncated} of {int(e.samples[0])} walks cut" for e in now.estimates.values()]
        progress.say(f"supernet: epoch {now.epoch} of {now.epochs}, loss {now.loss:.4f}{''.join(cut[:1])}")

    with progress.step("train the supernet"):
        state = train(supernet, problem.batches, settings, state, keep, report)
    state.restore(supernet)
    files.write(_record(supernet, state))
    return supernet, state


def _subject(problem: SearchProblem, training: str) -> SupernetSubject:
    from smpq.supernet.network import SupernetSubject

    space = problem.space
    formats = ";".join(f"{group.name}={','.join(map(str, space.formats[group.name]))}" for group in space.groups)
    calibration = problem.fake_quantizer.calibration
    settings = calibration.settings
    return SupernetSubject(
        problem.task,
        problem.traced,
        problem.original,
        problem.folded,
        space,
        calibration,
        settings.scheme,
        f"{problem.fingerprint}|{training}|{formats}|{settings.observer}|{settings.rounding}|{settings.scheme}",
    )


def _record(supernet: Supernet, state: SupernetState) -> SupernetFile:
    import msgspec

    from smpq.files import EpochRow, EstimateRow
    from smpq.supernet.files import SupernetFile

    shares = supernet.shares()
    return SupernetFile(
        settings=dict(state.settings),
        history=msgspec.convert(list(state.history), tuple[EpochRow, ...]),
        operations=len(supernet.operations),
        shares={
            f"{group} {side}": {
                operation.name: share for operation, share in zip(row, shares[group, side], strict=True)
            }
            for (group, side), row in supernet.rows.items()
        },
        contributions={
            value: msgspec.convert(found.to_json(), EstimateRow) for value, found in state.contributions.items()
        },
    )
