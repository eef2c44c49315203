"""What people ask of an engine, answered in sentences from the report of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deploy.report.wording import amount, change, counted, finite, interval, magnitude, measure, number, size

Verdict = Literal["yes", "no", "unknown", "note"]

_STAGE_NAMES = {
    "eager": "PyTorch as given",
    "float": "float PyTorch",
    "fake_quant": "quantised PyTorch",
    "onnx": "the ONNX graph",
    "engine": "the engine",
}
_NAMED = 4
_ORIN_BITS = (4, 8, 16, 32)


@dataclass(frozen=True)
class Answer:
    """A question, what the answer comes to, and the sentences; the first is the answer, the others support it."""

    question: str
    verdict: Verdict
    sentences: tuple[str, ...]


def answers(report: Mapping[str, Any]) -> list[Answer]:
    """Answer the five questions, in the order they are asked."""
    return [_faster(report), _why_not(report), _same_accuracy(report), _changes(report), _orin(report)]


def _faster(report: Mapping[str, Any]) -> Answer:
    question, latency = "Is it faster?", report["latency"]
    if latency is None:
        costs = f"What is counted instead: {size(report['size_bytes'])} against {size(report['float_size_bytes'])} of the float engine, and"
        counts = (
            f"{costs} {magnitude(report['bops'])} bit operations against {magnitude(report['float_bops'])}. Neither is a speed."
        )
        return Answer(question, "unknown", (f"Not measured: {_reason(report)}.", counts))
    low, high = latency["interval"]
    ratio = f"{number(latency['ratio'])} of the float engine's time, 95 % interval {number(low)} to {number(high)}"
    verdict: Verdict = "yes" if high < 1 else "no" if low > 1 else "unknown"
    first = {
        "yes": f"Yes: it takes {ratio}.",
        "no": f"No, it is slower: it takes {ratio}.",
        "unknown": f"No difference can be shown: it takes {ratio}.",
    }[verdict]
    measured = (
        f"{number(latency['engine_ms'])} ms against {number(latency['float_ms'])} ms at batch {latency['batch']}; {latency['clock']}, "
        f"{latency['rounds']} rounds, both engines in turn."
    )
    return Answer(question, verdict, (first, measured, *_prediction(latency)))


def _prediction(latency: Mapping[str, Any]) -> list[str]:
    predicted, agrees = finite(latency["predicted_ratio"]), _predicted_well(latency)
    if predicted is None:
        return []
    if agrees is None:
        return [f"Predicted was {number(predicted)}."]
    low, high = interval(latency["predicted_interval"], predicted)
    return [
        f"Predicted was {number(predicted)} ({number(low)} to {number(high)}), which {'agrees' if agrees else 'does not agree'}."
    ]


def _predicted_well(latency: Mapping[str, Any]) -> bool | None:
    """Whether the predicted and the measured interval meet; None without a prediction."""
    predicted = finite(latency["predicted_ratio"])
    if predicted is None or latency["predicted_interval"] is None:
        return None
    low, high = interval(latency["predicted_interval"], predicted)
    return bool(low <= latency["interval"][1] and latency["interval"][0] <= high)


def _why_not(report: Mapping[str, Any]) -> Answer:
    question, latency, differing = "If not, why not?", report["latency"], differing_kernels(report)
    sentences = []
    if differing:
        sentences.append(f"{counted(len(differing), 'layer')} run in another kernel than planned: {_names(differing)}.")
    sentences += [_sentence(text) for text in report["warnings"]]
    if latency is None:
        return Answer(question, "note", ("There is nothing to explain before it is measured.", *sentences))
    if latency["interval"][1] < 1:
        first = (
            "It is faster." if report["met"] else "It is faster, but the budget asks for more: the table below has what it reaches."
        )
        return Answer(question, "note", (first, *sentences))
    if not sentences:
        floats = sum(layer["bits"] >= 16 for layer in report["layers"])
        sentences.append(
            f"The run recorded no reason. {floats} of {counted(len(report['layers']), 'layer')} are still floating point; small layers "
            "often lose more to conversions between integers and floats than integers save them."
        )
    return Answer(question, "note", tuple(sentences))


def _same_accuracy(report: Mapping[str, Any]) -> Answer:
    question, verification = "Is the accuracy on the engine the same as in PyTorch?", report["verification"]
    metric, stages, lost_at = verification["metric"], verification["stages"], verification["lost_at"]
    ran = [
        name
        for name in _STAGE_NAMES
        if name in stages and stages[name]["not_run"] is None and finite(stages[name]["mean"]) is not None
    ]
    missing = [
        f"{_capital(_STAGE_NAMES[name])} was not run: {_bare(stages[name]['not_run'])}."
        for name in _STAGE_NAMES
        if name in stages and stages[name]["not_run"] is not None
    ]
    if not ran:
        return Answer(question, "unknown", ("Not verified.", *missing, *_explanation(verification)))
    last = ran[-1]
    figures = "; ".join(f"{_STAGE_NAMES[name]} {measure(stages[name]['mean'], stages[name]['interval'], metric)}" for name in ran)
    sentences = [f"{_capital(metric)} over {counted(verification['samples'], 'sample')}: {figures}."]
    for name in ran[1:]:
        stage = stages[name]
        moved = finite(stage["change"])
        if moved is None:
            continue
        low, high = interval(stage["change_interval"], moved)
        same = "" if stage["agreement"] is None else f", {number(100 * stage['agreement'])} % of predictions the same"
        between = f"{change(low, metric)} to {change(high, metric, unit=True)}"
        sentences.append(f"Step to {_STAGE_NAMES[name]}: {change(moved, metric)} ({between}){same}.")
    verdict: Verdict
    if lost_at == "float":
        verdict, first = "no", "No: the traced model does not compute what the PyTorch module does."
    elif lost_at in ("onnx", "engine"):
        verdict, first = "no", f"No: {_STAGE_NAMES[lost_at]} loses accuracy that quantised PyTorch still has."
    elif last != "engine":
        verdict, first = "unknown", f"Not verified on the engine; {_STAGE_NAMES[last]} is the last stage that ran."
    elif lost_at == "fake_quant":
        verdict, first = "no", "The engine computes what quantised PyTorch computes, but quantising itself cost accuracy."
    else:
        verdict, first = "yes", "Yes: no stage from float PyTorch to the engine loses accuracy that can be told from chance."
    return Answer(question, verdict, (first, *sentences, *missing, *_explanation(verification)))


def _explanation(verification: Mapping[str, Any]) -> list[str]:
    return [_sentence(verification["explanation"])] if verification["explanation"] else []


def _changes(report: Mapping[str, Any]) -> Answer:
    steps = [*_budget_steps(report), *_accuracy_steps(report)]
    differing = differing_kernels(report)
    if differing:
        steps.append(
            f"Give {_names(differing)} a format with a kernel on {report['target']} (`smpq targets` lists them) in policy.json, "
            "then `smpq export` and `smpq build`."
        )
    quantised = [layer for layer in report["layers"] if layer["bits"] < 16 and finite(layer["score"]) is not None]
    unclear = [
        layer["path"] for layer in quantised if interval(layer["interval"], 1.0)[0] < 0 < interval(layer["interval"], -1.0)[1]
    ]
    if unclear:
        steps.append(
            f"{counted(len(unclear), 'layer')} have a score whose interval includes zero ({_names(unclear)}): do not read an order into "
            f"them. More permutations than {report['scores']['permutations']} narrow it."
        )
    stability = report["stability"]
    if stability is not None and stability["undecided"]:
        undecided = stability["undecided"]
        steps.append(
            f"At this budget the scores cannot tell which format {_names(undecided)} should get: drawn again {stability['resamples']} times "
            "from the same samples, they decide otherwise in more than one case of ten. Their accuracy hardly differs either way; "
            "`--effort thorough` samples more."
        )
    if not steps:
        worst = min(quantised, key=lambda layer: float(layer["score"]), default=None)
        spare = (
            ""
            if worst is None
            else f" With budget to spare, widen {worst['path']} ({worst['format']}) first: its score is the lowest."
        )
        return Answer("What do I change?", "note", ("Nothing has to change." + spare,))
    return Answer("What do I change?", "note", tuple(steps))


def _budget_steps(report: Mapping[str, Any]) -> list[str]:
    steps, latency = [], report["latency"]
    slower = latency is not None and latency["interval"][1] >= 1
    for limit in report["limits"]:
        if limit["met"]:
            continue
        asked = f"{limit['cost']} ≤ {amount(limit['limit'], limit['unit'])}"
        if limit["reached"] is None:
            steps.append(f"Whether {asked} is met is not known: it was not measured.")
            continue
        advice = (
            "offer other formats" if slower and limit["cost"] == "latency" else "allow that much, or offer formats with fewer bits"
        )
        steps.append(f"{asked} is not met, the nearest reached is {amount(limit['reached'], limit['unit'])}: {advice}.")
    if latency is None:
        steps.append("Measure it on the device before relying on its speed.")
    elif slower:
        steps.append(f"Do not deploy it for speed: keep the float engine{_of(report['float_engine'])}, or offer other formats.")
    elif _predicted_well(latency) is False:
        steps.append(
            "Predicted and measured latency do not agree: measure again on a quiet machine, or let the loop take more turns."
        )
    return steps


def _accuracy_steps(report: Mapping[str, Any]) -> list[str]:
    lost_at = report["verification"]["lost_at"]
    if lost_at == "fake_quant":
        scored = [layer for layer in report["layers"] if layer["bits"] < 16 and finite(layer["score"]) is not None]
        worst = [layer["path"] for layer in sorted(scored, key=lambda layer: float(layer["score"]))[:3]]
        return [f"To win accuracy back, allow more budget{f'; the lowest scores are those of {_names(worst)}' if worst else ''}."]
    if lost_at in ("onnx", "engine"):
        return [
            f"Find the layer that differs at {_STAGE_NAMES[lost_at]}: set half of policy.json to a float format, `smpq verify`, and halve again."
        ]
    return []


def _orin(report: Mapping[str, Any]) -> Answer:
    question, target, engine = "Will it run on my Orin?", str(report["target"]), report["engine"]
    if target in ("ort-cpu", "simulate"):
        first = f"On its CPU, not on its GPU: {engine} is an ONNX file and runs wherever ONNX Runtime does."
        more = [f"It was verified on one machine, {_bare(report['machine'])}; the latency of another has to be measured there."]
        if target == "simulate":
            more = [
                "It is for evaluation: integer weights are turned to floats and computed as such, so it is not faster anywhere."
            ]
        more.append("For its GPU, run again with `--target jetson-orin`, which offers what its TensorRT has.")
    elif target.startswith("ort-"):
        first = (
            f"Where onnxruntime-gpu runs on it, perhaps: {engine} is an ONNX file, and its providers choose their kernels there."
        )
        more = ["Nothing of it was verified on Orin; run again with `--target jetson-orin` for an engine of TensorRT alone."]
    elif target == "jetson-orin":
        first = (
            f"It is made for it: the formats are those of Orin's TensorRT, which builds its engine from model.{target}.onnx itself."
        )
        more = ["An engine that was built and timed somewhere else says nothing about Orin: use `--device`, or `smpq bundle`."]
    else:
        built = f" ({', '.join(sorted(engine))})" if isinstance(engine, Mapping) else ""
        first = f"Not this engine{built}: a plan runs on the GPU kind and the TensorRT it was built with. Orin is SM87 and needs its own."
        more = [f"Carry model.{target}.onnx of this run to the device and build it there with the TensorRT of its JetPack."]
        ran = report["verification"]["stages"].get("onnx", {}).get("not_run", "") is None
        done = "the accuracy of that ONNX file" if ran else "nothing that carries over to Orin"
        more.append(f"Verified is {done}. Not verified are kernels, latency and accuracy on Orin itself.")
    foreign = sorted({layer["format"] for layer in report["layers"] if not _on_orin(layer)})
    if foreign:
        more.append(f"Orin's GPU has no kernels for {_names(foreign)}: use w8a8, w4a16 with blocks, or fp16.")
    return Answer(question, "note", (first, *more))


def _on_orin(layer: Mapping[str, Any]) -> bool:
    text = str(layer["format"])
    activation = text.partition("a")[2].partition("b")[0]
    return layer["bits"] in _ORIN_BITS and activation in ("", "8", "16")


def differing_kernels(report: Mapping[str, Any]) -> list[str]:
    """Return the layers that became another kernel than their format asks for."""
    return [layer["path"] for layer in report["layers"] if layer["kernel_agrees"] is False]


def budget_ratio(report: Mapping[str, Any]) -> float | None:
    """Return the latency budget as a share of the float engine's time, where there is one and it can be told."""
    latency = report["latency"]
    for limit in report["limits"]:
        if limit["cost"] == "latency":
            if limit["unit"] != "ms":
                return finite(limit["limit"])
            return limit["limit"] / latency["float_ms"] if latency else None
    return None


def _names(paths: Sequence[str]) -> str:
    rest = len(paths) - _NAMED
    return ", ".join(paths[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _reason(report: Mapping[str, Any]) -> str:
    return _bare(report["latency_note"]) or "the run has no measurement"


def _bare(text: Any) -> str:
    return str(text or "").strip().rstrip(".")


def _sentence(text: str) -> str:
    return _capital(_bare(text)) + "."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _of(path: Any) -> str:
    return f" ({path})" if isinstance(path, str) else ""
