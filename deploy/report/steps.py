"""What to change about an engine, and the one command to type next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.files.report import LatencyPart, LimitRow, ReportFile
from deploy.report.accuracy import STAGE_NAMES
from deploy.report.answer import Answer, Step, some
from deploy.report.command_lines import CommandLines
from deploy.report.speed import asks_for_speed, faster, held_by_loss
from deploy.report.wording import amount, counted
from smpq.problem.budget import LOSSES
from smpq.solve.effort import EFFORTS
from smpq.training.settings import FineTuneSettings

_QUESTION = "What do I change?"
_LAST_EFFORT = list(EFFORTS)[-1]
_TUNING: Mapping[str, tuple[str, Mapping[str, Sequence[str]]]] = {
    "finetune": (
        " fine-tune (the task needs training data), or",
        {"--finetune": [f"{FineTuneSettings.epochs:g}"]},
    ),
    "reconstruct": (" reconstruct the weights, or", {"--reconstruct": ["mse"]}),
}
"""What the step about accuracy says of the weights, and the options that do it."""


def changes(report: ReportFile, run: Path) -> Answer:
    """Say what to change: first the command of the first step that has one, then the steps."""
    commands = CommandLines(report, run)
    steps = [*_budget_steps(report, commands), *_accuracy_steps(report, commands), *_plan_steps(report, commands)]
    if not steps:
        return Answer(_QUESTION, "note", (_nothing(report, commands),))
    verified = report.verification
    wrong = verified is not None and "float" in verified.lost  # no command makes the model another one
    following = [] if wrong else [f"Next: `{step.command}`." for step in steps if step.command is not None][:1]
    return Answer(_QUESTION, "steps", (*following, *(step.sentence for step in steps)))


def trained_together(report: ReportFile) -> bool:
    """Whether a method trained formats and weights together: there are no scores that other budgets could be solved
    with.
    """
    return report.finetuning is not None and "method" in report.finetuning.settings


def _nothing(report: ReportFile, commands: CommandLines) -> str:
    curve = commands.about_run("curve") if report.curve is None and not trained_together(report) else None
    first = "Nothing has to change" + (f"; `{curve}` shows what other budgets would give." if curve else ".")
    scored = [(layer.score, layer) for layer in report.layers if layer.bits < 16 and layer.score is not None]
    _, worst = min(scored, key=lambda each: each[0], default=(0.0, None))
    if worst is None:
        return first
    return f"{first} With budget to spare, widen {worst.path} ({worst.format}) first: its score is the lowest."


def _budget_steps(report: ReportFile, commands: CommandLines) -> list[Step]:
    latency = report.latency
    slower = latency is not None and (report.is_float or faster(latency.interval) != "yes")
    steps = [_unmet(limit, report, commands, slower=slower) for limit in report.limits if not limit.met]
    if report.cut_short:
        steps.insert(0, Step("The search was cut short: the same command goes on where it was.", commands.again()))
    if latency is None:
        steps.append(Step("Measure it on the device before relying on its speed.", _to_measure(report, commands)))
    elif slower and asks_for_speed([limit.cost for limit in report.limits]):
        lossy = held_by_loss(report)
        command = commands.about_run("curve") if lossy else _other_formats(report, commands)
        steps.append(Step(_not_for_speed(report, latency), command))
    elif predicted_well(latency) is False:
        sentence = (
            "Predicted and measured latency do not agree: measure again on a quiet machine, or let the loop take more "
            "turns."
        )
        steps.append(Step(sentence, commands.about_run("measure")))
    return steps


def _not_for_speed(report: ReportFile, latency: LatencyPart) -> str:
    name = f" ({report.float_engine})" if isinstance(report.float_engine, str) else ""
    if held_by_loss(report):
        return (
            "It is the float engine: to be faster, allow a larger loss, or hold out more samples to show a smaller one."
        )
    if report.is_float:
        return "It is the float engine: to be faster, offer other formats."
    if faster(latency.interval) == "unknown":
        return f"It is not shown to be faster: for speed keep the float engine{name}, or offer other formats."
    return f"Do not deploy it for speed: keep the float engine{name}, or offer other formats."


def _unmet(limit: LimitRow, report: ReportFile, commands: CommandLines, *, slower: bool) -> Step:
    asked = f"{limit.cost} ≤ {amount(limit.limit, limit.unit)}"
    if limit.reached is None:
        sentence = f"Whether {asked} is met is not known: it was not measured."
        return Step(sentence, _to_measure(report, commands) if limit.cost == "latency" else commands.again())
    high = limit.interval.high if limit.interval is not None else limit.reached
    reached, end = amount(limit.reached, limit.unit), amount(high, limit.unit)
    loosened = commands.loosened(limit, max(high, limit.limit))
    if limit.cost in LOSSES:
        beside = f", and its interval reaches {end}" if limit.interval is not None else ""
        if limit.reached <= limit.limit:
            text = f"{asked} is not shown: {reached} is lost{beside}. More held-out samples narrow it; or allow {end}."
        else:
            text = f"{asked} is not met: {reached} is lost{beside}. Allow that much, or offer formats with more bits."
        return Step(text, commands.again(loosened))
    if limit.reached <= limit.limit < high:
        text = (
            f"{asked} is not met: {reached} is reached, but its interval reaches {end}. Measure again on a quiet "
            "machine, or allow that much."
        )
        return Step(text, commands.about_run("measure"))
    sentence = f"{asked} is not met, the nearest reached is {reached}"
    if slower and limit.cost == "latency":
        return Step(f"{sentence}: offer other formats.", _other_formats(report, commands))
    return Step(f"{sentence}: allow that much, or offer formats with fewer bits.", commands.again(loosened))


def _to_measure(report: ReportFile, commands: CommandLines) -> str | None:
    if not report.destination.timed:
        return None
    if "smpq measure" not in (report.latency_note or ""):
        return commands.about_device()
    return commands.about_run("measure" if _built(report) else "export")


def _other_formats(report: ReportFile, commands: CommandLines) -> str | None:
    """Offer all formats of the target where some were left out; else show which are real on it."""
    narrowed = "--formats" in report.options
    again = commands.again(changed={"--formats": None}, new="-all-formats") if narrowed else None
    return again or commands.about_target()


def _accuracy_steps(report: ReportFile, commands: CommandLines) -> list[Step]:
    """Say what to do about accuracy that was lost."""
    if report.verification is None and report.synthetic is not None and not report.synthetic.evaluation:
        return [Step("Give the task evaluation data, and verify it, before relying on its accuracy.")]
    if report.verification is None:
        verify = commands.about_run("verify" if _built(report) else "export")
        return [Step("Verify it before relying on its accuracy.", verify)]
    lost = report.verification.lost
    if not lost and report.verification.lost_in_all:
        lost = [report.verification.largest_drop]
    if "float" in lost:
        return [Step("Report it, and use no engine of this run: its float model is not your module.")]
    steps = []
    if "fake_quant" in lost:
        scored = [(layer.score, layer.path) for layer in report.layers if layer.bits < 16 and layer.score is not None]
        worst = [path for _, path in sorted(scored, key=lambda each: each[0])[:3]]
        lowest = f"; the lowest scores are those of {some(worst)}" if worst else ""
        trained = trained_together(report)
        tune, changed = _TUNING[report.tuning] if report.tuning is not None else ("", None)
        tune = " train longer (--finetune), or" if trained else tune
        sentence = f"To win accuracy back,{tune} allow more budget{lowest}."
        steps.append(
            Step(
                sentence,
                commands.again(changed={"--finetune": [f"{_longer(report):g}"]}, new="-longer")
                if trained
                else commands.about_run("curve")
                if changed is None
                else commands.again(changed=changed),
            )
        )
    for name in ("onnx", "engine"):
        if name in lost:
            sentence = (
                f"Find the layer that differs at {STAGE_NAMES[name]}: set half of policy.json to a float format, "
                "`smpq export`, `smpq build`, `smpq verify`, and halve again."
            )
            steps.append(Step(sentence))
    return steps


def _longer(report: ReportFile) -> float:
    """Return twice the epochs of the training."""
    epochs = report.finetuning.settings.get("epochs") if report.finetuning is not None else None
    return 2 * (float(epochs) if epochs is not None else FineTuneSettings.epochs)


def _plan_steps(report: ReportFile, commands: CommandLines) -> list[Step]:
    steps, differing = [], differing_kernels(report)
    if differing:
        sentence = (
            f"Give {some(differing)} a format with a kernel on {report.target} (`smpq targets` lists them) in "
            "policy.json, then `smpq export` and `smpq build`."
        )
        steps.append(Step(sentence, commands.about_target()))
    effort = report.settings.get("effort")
    more = {"--effort": [_LAST_EFFORT], "--evaluations": None}
    longer = None if effort == _LAST_EFFORT else commands.again(changed=more, new=f"-{_LAST_EFFORT}")
    unclear = [
        layer.path
        for layer in report.layers
        if layer.bits < 16 and layer.interval is not None and layer.interval.low < 0 < layer.interval.high
    ]
    if unclear:
        than = f" than {report.scores.permutations}" if report.scores.permutations else ""
        sentence = (
            f"The interval of the score includes zero for {counted(len(unclear), 'layer')} ({some(unclear)}): do not "
            f"read an order into them. More samples{than} narrow it."
        )
        steps.append(Step(sentence, longer))
    stability = report.stability
    if stability is not None and stability.undecided:
        sentence = (
            f"At this budget the scores cannot tell which format {some(stability.undecided)} should get: drawn again "
            f"{stability.resamples} times from the same samples, they decide otherwise in more than one case of ten. "
            f"Their accuracy hardly differs either way; `--effort {_LAST_EFFORT}` samples more."
        )
        steps.append(Step(sentence, longer))
    return steps


def _built(report: ReportFile) -> bool:
    """Whether an engine of this policy was built: only then its kernels are known."""
    return any(layer.kernel is not None for layer in report.layers)


def predicted_well(latency: LatencyPart) -> bool | None:
    """Whether the predicted and the measured interval meet; None without a prediction."""
    ends = latency.predicted_interval
    return None if ends is None else ends.low <= latency.interval.high and latency.interval.low <= ends.high


def differing_kernels(report: ReportFile) -> list[str]:
    """Return the layers that became another kernel than their format asks for."""
    return [layer.path for layer in report.layers if layer.kernel_agrees is False]
