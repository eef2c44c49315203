"""Where accuracy was lost between the module as given and the engine."""

from __future__ import annotations

from deploy.files.report import ReportFile
from deploy.files.synthetic import SyntheticFile
from deploy.files.verification import STAGES, Confidence, Quantiles, StageName, VerifyFile
from deploy.report.answer import Answer, Verdict, bare, capital, sentence
from deploy.report.wording import change, counted, measure, number
from smpq.files import Interval

STAGE_NAMES: dict[StageName, str] = {
    "eager": "PyTorch as given",
    "float": "float PyTorch",
    "fake_quant": "quantised PyTorch",
    "onnx": "the ONNX graph",
    "engine": "the engine",
}
_MADE_HERE: tuple[StageName, ...] = ("onnx", "engine")
"""Stages that only a fault of the export or of the runtime can change."""


def said_of(record: SyntheticFile) -> str:
    """Say in a sentence what calibrates a run without samples of the task."""
    fitted = (
        f"fitted to the statistics of {counted(record.norms, 'BatchNorm layer')} (mismatch {number(record.mismatch)}, "
        f"that of noise {number(record.noise_mismatch)})"
        if record.norms
        else "plain noise, since no BatchNorm layer keeps statistics that it could be fitted to"
    )
    return (
        f"data-free: no sample of the task calibrated it, {counted(record.samples, 'synthetic sample')} did, {fitted}"
    )


def same_accuracy(report: ReportFile) -> Answer:
    """Say whether the engine is as accurate as PyTorch, and which stage it lost accuracy at."""
    question, verification = "Is the accuracy on the engine the same as in PyTorch?", report.verification
    calibrated: list[str] = [sentence(said_of(report.synthetic))] if report.synthetic is not None else []
    if verification is None:
        none_given = report.synthetic is not None and not report.synthetic.evaluation
        first = "Not verified: the task gives no evaluation data." if none_given else "Not verified."
        return Answer(question, "unknown", (first, *calibrated))
    ran = [name for name in STAGES if name in verification.stages and verification.stages[name].mean is not None]
    missing = [
        f"{capital(STAGE_NAMES[name])} was not run: {bare(verification.stages[name].not_run)}."
        for name in STAGES
        if name in verification.stages and name not in ran
    ]
    explanation = [sentence(verification.explanation)] if verification.explanation else []
    if not ran:
        return Answer(question, "unknown", ("Not verified.", *missing, *explanation))
    verdict, first = _verdict(ran, verification)
    return Answer(question, verdict, (first, *_figures(verification, ran), *missing, *explanation, *calibrated))


def _verdict(ran: list[StageName], verification: VerifyFile) -> tuple[Verdict, str]:
    lost = verification.lost
    made_here = [name for name in _MADE_HERE if name in lost]
    if "float" in lost:
        return "no", (
            "No: float PyTorch, the traced model, loses accuracy that PyTorch as given has. The trace is not your "
            "module: this is a bug or a "
            "model that is not supported, please report it."
        )
    if made_here:
        return (
            "no",
            (
                f"No: {' and '.join(STAGE_NAMES[name] for name in made_here)} {_lose(made_here)} accuracy that "
                "quantised PyTorch still has."
            ),
        )
    if ran[-1] != "engine":
        return "unknown", f"Not verified on the engine; {STAGE_NAMES[ran[-1]]} is the last stage that ran."
    if "fake_quant" in lost:
        return "no", "The engine computes what quantised PyTorch computes, but quantising itself cost accuracy."
    if ran[0] not in ("eager", "float"):
        return "unknown", f"Not compared with PyTorch; {STAGE_NAMES[ran[0]]} is the first stage that ran."
    if verification.lost_in_all:
        return "no", (
            f"No: the engine is less accurate than {STAGE_NAMES[ran[0]]}. The data do not tell at which stage it was "
            f"lost, the largest drop is at {STAGE_NAMES[verification.largest_drop]}."
        )
    return "yes", f"Yes: no stage from {STAGE_NAMES[ran[0]]} to the engine loses accuracy that can be told from chance."


def _lose(names: list[StageName]) -> str:
    return "loses" if len(names) == 1 else "lose"


def _figures(verification: VerifyFile, ran: list[StageName]) -> list[str]:
    """Return the metric of the stages that had all samples, the change from the first to the last, and the step to each
    from the one before.
    """
    metric, figures, steps = verification.metric, [], []
    for name in ran:
        stage = verification.stages[name]
        if stage.mean is not None and stage.interval is not None and stage.samples == verification.samples:
            figures.append(f"{STAGE_NAMES[name]} {measure(stage.mean, stage.interval, metric)}")
        if name != ran[0] and stage.change is not None and stage.change_interval is not None:
            before = verification.stages[ran[ran.index(name) - 1]].samples or 0
            shared = min(before, stage.samples or 0)
            part = f" on {counted(shared, 'sample')}" if shared < verification.samples else ""
            steps.append(
                f"Step to {STAGE_NAMES[name]}{part}: "
                f"{_change(stage.change, stage.change_interval, stage.agreement, metric)}."
            )
    whole = verification.whole
    return [
        f"{capital(metric)} over {counted(verification.samples, 'sample')}: {'; '.join(figures)}.",
        (
            f"From {STAGE_NAMES[ran[0]]} to {STAGE_NAMES[ran[-1]]}: "
            f"{_change(whole.change, whole.interval, whole.agreement, metric)}."
        ),
        *steps,
        *_confidence(verification.confidence, STAGE_NAMES[ran[0]], STAGE_NAMES[ran[-1]]),
    ]


def _confidence(moved: Confidence | None, first: str, last: str) -> list[str]:
    """Return how sure the outputs are, and what follows where that moved."""
    if moved is None:
        return []
    ends = f"{number(moved.interval.low)} to {number(moved.interval.high)}"
    spreads = f"{first} {_spread(moved.first)}; {last} {_spread(moved.last)}"
    return [
        f"Confidence of the outputs, median and 5 to 95 %: {spreads}.",
        f"It moved by {number(moved.change)} in the mean ({ends}).",
        *(["Choose thresholds on the confidence anew, on the engine."] if moved.has_moved else []),
    ]


def _spread(values: Quantiles) -> str:
    return f"{number(values.median)} ({number(values.low)} to {number(values.high)})"


def _change(value: float, ends: Interval, agreement: float | None, metric: str) -> str:
    same = "" if agreement is None else f", {number(100 * agreement)} % of predictions the same"
    between = f"{change(ends.low, metric)} to {change(ends.high, metric, unit=True)}"
    return f"{change(value, metric)} ({between}){same}"
