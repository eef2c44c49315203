"""OHQ without a sample against OHQ with the calibration data: what is lost, and what it costs.

Usage: PYTHONPATH=. data_free.py CIFAR WEIGHTS [WORK [RUNS]]

ResNet-20 on CIFAR-10 and the digits network. `simulate` at 3 bits a weight on average, of 2, 3, 4 and 8; `ort-cpu` at
0.65 of the float engine's time, which depends on the machine and on what else it does. Accuracy is that of the last
stage of the run on all evaluation data. Every run is kept in WORK (`runs/data_free`), and one that is done is not made
again; RUNS is a pattern of the runs to make. CPU seconds are those of this process and of what it starts, synthetic
samples and verification included.

`plans`: the best plan for the scores of the simulated runs of digits, fake-quantised, with other weights of the cost
(`smpq.methods.ohq.weighed`) and other shares of masked weights, on the evaluation data.
"""

import re
import resource
import sys
import time
from pathlib import Path

import torch
from records import Parts, keep
from rich.console import Console

from deploy.run.settings import Settings
from deploy.run.workspace import Workspace
from deploy.stages.run_all import open_run, run_all
from deploy.stages.scoring import search_problem, static_ceilings
from deploy.terminal.progress import Progress
from smpq.methods import method_from_name, ohq
from smpq.problem.budget import Budget
from smpq.problem.policy import Policy
from smpq.solve.allocate import Problem, solve_or_explain

BUDGETS = {"simulate": "avg_bits=3", "ort-cpu": "latency=0.65x"}
FORMATS = {"simulate": "w2a8,w3a8,w4a8,w8a8", "ort-cpu": ""}
NETWORKS = ("digits", "cifar10-resnet20")
BETAS = (0.0, 0.1, 0.3)
MASKED = (0.1, 0.5)


def settings_for(network: str, target: str, data: str, weights: str, *, data_free: bool) -> Settings:
    brought = network == "cifar10-resnet20"
    return Settings(
        network,
        target,
        data=data if brought else None,
        weights=weights if brought else None,
        formats=FORMATS[target],
        data_free=data_free,
    )


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def run_of(settings: Settings, method: str, directory: Path) -> dict:
    """Make a run and say what it came to."""
    before = cpu_seconds(), time.monotonic()
    report = run_all(directory, settings, BUDGETS[settings.target], Progress(Console(stderr=True)), method=method)
    verified, latency, synthetic = report.verification, report.latency, report.synthetic
    assert verified is not None
    stages = {name: stage for name, stage in verified.stages.items() if stage.samples == verified.samples}
    last = list(stages)[-1]
    return {
        "network": settings.task,
        "target": settings.target,
        "budget": report.budget,
        "met": report.met,
        "method": method,
        "data_free": settings.data_free,
        "stage": last,
        "top1": round(100 * stages[last].mean, 2),
        "float_top1": round(100 * next(iter(stages.values())).mean, 2),
        "change": [round(100 * each, 2) for each in (verified.whole.change, *plain_ends(verified.whole.interval))],
        "samples": verified.samples,
        "avg_bits": round(report.avg_bits, 3),
        "latency_ratio": None if latency is None else [latency.ratio, *plain_ends(latency.interval)],
        "mismatch": None if synthetic is None else [synthetic.noise_mismatch, synthetic.mismatch],
        "evaluations": report.scores.evaluations,
        "cpu_seconds": round(cpu_seconds() - before[0], 1),
        "seconds": round(time.monotonic() - before[1], 1),
        "stages_seconds": report.seconds,
        "policy": report.policy,
    }


def plain_ends(interval: object) -> tuple[float, float]:
    return interval.low, interval.high


def plans_of(settings: Settings, directory: Path) -> list[dict]:
    """Return how accurate the best plan is by the share of masked weights and the weight of the cost."""
    rows = []
    with open_run(directory, Progress(), settings) as workspace:
        ceilings = static_ceilings(workspace, Budget.from_text(BUDGETS[settings.target]))
        for masked in MASKED:
            ohq.MASKED = masked
            scores = method_from_name("ohq").score(search_problem(workspace)).linear
            for beta in BETAS:
                values = ohq.weighed(scores.values(), ceilings, 1 - beta, beta)
                policy = solve_or_explain(Problem(workspace.space, values, ceilings))
                rows.append(
                    {
                        "network": settings.task,
                        "data_free": settings.data_free,
                        "masked": masked,
                        "beta": beta,
                        "avg_bits": round(workspace.costs["avg_bits"].total(policy), 3),
                        "kl": -workspace.evaluator(policy),
                        "top1": top1(workspace, policy),
                    }
                )
    return rows


def top1(workspace: Workspace, policy: Policy) -> float:
    traced, edits = workspace.traced, workspace.fake_quantizer.edits(workspace.plan(policy))
    batches = list(workspace.task.evaluation())
    right = sum(float(workspace.task.metric(traced.run(each.inputs, edits), each.target).sum()) for each in batches)
    return round(100 * right / sum(len(each.inputs[0]) for each in batches), 2)


def main() -> None:
    data, weights, *rest = sys.argv[1:]
    work = Path(rest[0] if rest else "runs/data_free")
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    pattern = rest[1] if len(rest) > 1 else ""
    parts = Parts(work / "parts.json")
    asked = {
        f"{network}-{target}-{'free' if data_free else 'data'}": settings_for(
            network, target, data, weights, data_free=data_free
        )
        for target in BUDGETS
        for network in NETWORKS
        for data_free in (True, False)
    }
    asked = {name: settings for name, settings in asked.items() if re.search(pattern, name)}
    rows = [parts(name, lambda: run_of(settings, "ohq", work / name)) for name, settings in asked.items()]  # noqa: B023
    plans = [
        row
        for name, settings in asked.items()
        if name.startswith("digits-simulate")
        for row in parts(f"{name}-plans", lambda: plans_of(settings, work / name))  # noqa: B023 - called at once
    ]
    command = "PYTHONPATH=. python benchmarks/data_free.py CIFAR WEIGHTS"
    keep("data_free", f"{command} WORK '{pattern}'" if pattern else command, [0], rows, plans=plans)


if __name__ == "__main__":
    main()
