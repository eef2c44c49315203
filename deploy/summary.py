"""Gather what a run holds into `report.json`: the plan, the proof, and where every number came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deploy.engines import engine_names
from deploy.finetuning import read_record, version_key
from deploy.latency.measure import machine
from deploy.prepare import Prepared
from deploy.stages.explaining import read_explanation
from smpq.allocate import Ceiling, Problem, allocate
from smpq.budget import Budget
from smpq.policy import Policy
from smpq.scores import Scores

SCHEMA = 1
_CURVE_POINTS = 12
_UNITS = {"size": "bytes", "avg_bits": "bits", "bops": "bops"}


def write_report(prepared: Prepared, policy: Policy) -> dict[str, Any]:
    """Read the files of the run's stages and write `report.json`; what a stage has not made yet is null."""
    run = prepared.run
    budget = read_budget(prepared)
    scores = Scores.from_json(run.read_json("scores.json"), prepared.space) if run.has("scores.json") else None
    key = version_key(prepared, policy)
    verification = run.read_json("verify.json", keys=["stages", "lost_at"]) if run.made_for("verify.json", key) else None
    kernels = run.read_json("build.json", keys=["kernels"])["kernels"] if run.made_for("build.json", key) else {}
    record = run.read_json("run.json", keys=["settings", "versions"])
    latency, note = _latency(prepared, policy)
    limits = _limits(prepared, policy, budget, latency)
    reached = {name: model.total(policy) for name, model in prepared.costs.items()}
    names = engine_names(prepared.target)
    report = {
        "schema": SCHEMA,
        "task": prepared.settings.task,
        "target": prepared.target.name,
        "engine": _existing(prepared, names.engines),
        "float_engine": _existing(prepared, names.float_engines),
        "policy": {path: str(chosen) for path, chosen in policy.by_unit(prepared.space.groups).items()},
        "accuracy": {stage: row["mean"] for stage, row in verification["stages"].items()} if verification else _no_accuracy(),
        "verification": verification or _not_verified(prepared),
        "latency": latency,
        "latency_note": note,
        "size_bytes": reached["size"],
        "float_size_bytes": prepared.costs["size"].float_total,
        "avg_bits": reached["avg_bits"],
        "bops": reached["bops"],
        "float_bops": prepared.costs["bops"].float_total,
        "budget": str(budget) if budget else "",
        "limits": limits,
        "met": bool(limits) and all(limit["met"] is True for limit in limits),
        "layers": _layers(prepared, policy, scores, kernels),
        "stability": _stability(prepared, policy),
        "contributions": read_explanation(prepared, policy),
        "observations": run.read_json("loop.json", keys=["steps"])["steps"] if run.has("loop.json") else [],
        "pareto": _curve(prepared, scores) if scores else [],
        "scores": _provenance(scores, prepared),
        "skipped": [{"path": s.path, "operator": s.operator, "reason": s.reason} for s in prepared.skipped],
        "refused": prepared.refused,
        "warnings": _warnings(policy, prepared, latency, kernels, verification),
        "finetuning": read_record(prepared),
        "settings": record["settings"],
        "versions": record["versions"],
        "machine": machine(),
        "seconds": {name: round(seconds, 1) for name, seconds in prepared.progress.seconds.items()},
    }
    run.write_json("report.json", report)
    return report


def _existing(prepared: Prepared, names: Mapping[str, str]) -> str | dict[str, str] | None:
    there = {capability: name for capability, name in names.items() if prepared.run.has(name)}
    return there.get("", there) or None


def _latency(prepared: Prepared, policy: Policy) -> tuple[dict[str, Any] | None, str | None]:
    run = prepared.run
    if not run.has("latency.json") and prepared.not_measurable is not None:
        return None, prepared.not_measurable
    if not run.has("latency.json"):
        return None, "the engine has not been measured yet: use smpq measure"
    if not run.made_for("latency.json", version_key(prepared, policy)):
        return None, "the measured engine was of another policy or other weights: use smpq build and smpq measure"
    latency = run.read_json("latency.json", keys=["ratio", "interval", "engine_ms", "float_ms"])
    return {name: value for name, value in latency.items() if name not in {"schema", "policy", "measurement"}}, None


def _limits(prepared: Prepared, policy: Policy, budget: Budget | None, latency: dict[str, Any] | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for limit in budget.limits if budget else ():
        if limit.cost == "latency":
            reached, met = None, None
            if latency is not None:
                scale = 1.0 if limit.relative else latency["float_ms"]
                reached = latency["ratio"] * scale
                met = latency["interval"][1] * scale <= limit.value
            rows.append(
                {"cost": "latency", "limit": limit.value, "reached": reached, "unit": "x" if limit.relative else "ms", "met": met}
            )
            continue
        model = prepared.costs[limit.cost]
        unit = model.float_total if limit.relative else 1.0
        total = model.total(policy)
        met = total <= limit.absolute(model.float_total) * (1 + 1e-9)
        rows.append(
            {
                "cost": limit.cost,
                "limit": limit.value,
                "reached": total / unit,
                "unit": "x" if limit.relative else _UNITS[limit.cost],
                "met": met,
            }
        )
    return rows


def _layers(prepared: Prepared, policy: Policy, scores: Scores | None, kernels: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for group in prepared.space.groups:
        chosen = policy[group.name]
        entry = scores.entries[group.name].get(chosen) if scores else None
        for unit in group.units:
            kernel = kernels.get(unit.path)
            rows.append(
                {
                    "path": unit.path,
                    "operator": unit.operator,
                    "parameters": unit.parameters,
                    "macs": unit.macs,
                    "format": str(chosen),
                    "bits": chosen.weight_bits,
                    "score": entry.value if entry else None,
                    "standard_error": entry.standard_error if entry else None,
                    "interval": list(entry.interval) if entry else None,
                    "samples": entry.samples if entry else None,
                    "alone": entry.alone if entry else None,
                    "kernel": kernel["kernel"] if kernel else None,
                    "kernel_agrees": kernel["agrees"] if kernel else None,
                }
            )
    return rows


def _stability(prepared: Prepared, policy: Policy) -> dict[str, Any] | None:
    """How sure the scores are of the decision for this budget; None when it was not asked, or of another policy."""
    run = prepared.run
    if not run.has("stability.json") or not run.made_for("stability.json", policy.key()):
        return None
    record = run.read_json("stability.json", keys=["resamples", "undecided", "frequencies"])
    return {name: record[name] for name in ("resamples", "undecided", "frequencies")} if record["resamples"] else None


def _curve(prepared: Prepared, scores: Scores) -> list[dict[str, Any]]:
    """Re-solve for budgets over the whole range of average bits; the value is what the scores predict."""
    model = prepared.costs["avg_bits"]
    low, high = (
        sum(
            pick(model.parts[group.name][chosen] for chosen in prepared.space.formats[group.name])
            for group in prepared.space.groups
        )
        for pick in (min, max)
    )
    points: dict[float, float] = {}
    values = scores.values()
    for step in range(_CURVE_POINTS):
        limit = low + (high - low) * step / (_CURVE_POINTS - 1)
        policy = allocate(Problem(prepared.space, values, [Ceiling(model, max(limit, 1e-9))]))
        if policy is not None:
            points[model.total(policy)] = sum(values[name][chosen] for name, chosen in policy.formats.items())
    return [{"cost": "avg_bits", "reached": reached, "value": value} for reached, value in sorted(points.items())]


def _provenance(scores: Scores | None, prepared: Prepared) -> dict[str, Any]:
    if scores is None:
        return {
            "value": prepared.settings.value, "estimator": "none", "evaluations": 0, "permutations": 0,
            "seed": prepared.settings.seed, "stop_reason": "not scored",
        }  # fmt: skip
    record = scores.to_json()
    return {name: record[name] for name in ("value", "estimator", "evaluations", "permutations", "seed", "stop_reason")}


def _warnings(
    policy: Policy, prepared: Prepared, latency: dict[str, Any] | None, kernels: dict[str, Any], verification: Any
) -> list[str]:
    found = []
    if (
        latency is not None
        and latency["interval"][1] >= 1.0
        and policy.key() != prepared.space.uniform(prepared.space.reference).key()
    ):
        found.append(
            f"the engine is not faster than the float engine ({latency['ratio']:.3f}x): deploy {prepared.target.reference} instead"
        )
    disagreeing = [path for path, kernel in kernels.items() if not kernel["agrees"]]
    if disagreeing:
        found.append(f"{len(disagreeing)} layers do not run in their planned format: {', '.join(disagreeing[:5])}")
    if verification and verification["lost_at"] in {"float", "onnx", "engine"}:
        found.append(verification["explanation"])
    return found


def _no_accuracy() -> dict[str, None]:
    return dict.fromkeys(("eager", "float", "fake_quant", "onnx", "engine"))


def _not_verified(prepared: Prepared) -> dict[str, Any]:
    empty = dict.fromkeys(("mean", "interval", "change", "change_interval", "agreement"))
    stages: Sequence[str] = tuple(_no_accuracy())
    return {
        "metric": prepared.task.metric_name,
        "samples": 0,
        "stages": {stage: {**empty, "not_run": "not verified yet: use smpq verify"} for stage in stages},
        "lost_at": None,
        "explanation": "nothing was verified yet",
    }


def read_budget(prepared: Prepared) -> Budget | None:
    """Read the budget that `policy.json` was solved for; None when it was written by hand."""
    if not prepared.run.has("budget.json"):
        return None
    return Budget.from_text(str(prepared.run.read_json("budget.json", keys=["budget"])["budget"]))
