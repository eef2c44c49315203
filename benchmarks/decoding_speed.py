"""Speed and loss of decoding with a cache on `ort-cpu`:
engines of one format against a mixed plan for a latency budget.

Usage: decoding_speed.py TEXT WEIGHTS [--budget latency=0.5x --budget latency=0.65x] [--tokens 200] [--rounds 7]

The byte model of `examples/shakespeare.py` with the weights of `train_language.py`. Mixed plans are those of
`smpq run` for the budgets, whose latency is that of one token behind a full cache; `run` is what it re-measured,
against the same clock, and whether the budget was met. Engines of one format are made of the same float
file; the embedding, which is the head too, has 4 bits in blocks of 128 where a kernel for the format is missing. With
zero points (`wz`) no table row offers them: they are tried here.

- `ratio`: time by the float engine's, one token behind a full cache of 256 places, one thread, CPU clock, interleaved
  rounds, 95 % bootstrap interval.
- `tokens_per_cpu_second`: written tokens from an empty cache on, with the growing of the cache, the engines in turn.
- `loss`: nats per byte more than float on the held-out text, as the engine computes them (`nats`).
- `exact_error`: mean absolute difference of a step's logits between the fake-quantised model and the file computed as
  it is written, and `engine_error` of the engine, in standard deviations of the logits.
- `kernels`: what the layers became in the graph that runs.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from decoders import MODELS, speeds, step_of
from int2_blocks import Calls, kernels
from records import keep
from rich.console import Console

from calib.formats.format import FP32, Format
from calib.network.units import Unit
from calib.tasks.decoding import DecodingTask, Step
from deploy.backends import onnxruntime as ort
from deploy.backends.onnxruntime.engine import open_session
from deploy.run.settings import Settings
from deploy.run.workspace import Workspace
from deploy.runner.protocol import Protocol, measure_engines
from deploy.stages.policies import read_policy
from deploy.stages.run_all import open_run, run_stages
from deploy.terminal.progress import Progress
from smpq.problem.budget import Budget

FORMATS = "w2a16b128,w4a16b128,w8a16b128,fp32"
UNIFORM = ("w8a16b128", "w4a16b128", "w2a16b128", "wz8a16b128", "wz4a16b128", "wz2a16b128")
EMBEDDING = Format.from_text("w4a16b128")
EMBEDDING_WIDTHS = (4, 8)
FLOAT = "fp32"
PROMPT_TOKENS = 8


def uniform(units: tuple[Unit, ...], text: str) -> dict[str, Format]:
    """Return one format for all layers, and for the embedding where it has a kernel."""
    chosen = Format.from_text(text)
    rows = chosen if not chosen.weight.zero_points and chosen.weight_bits in EMBEDDING_WIDTHS else EMBEDDING
    return {unit.path: rows if unit.gathers else chosen for unit in units}


class Engines:
    """The engines of a run and of other policies, by name, with what is known of each."""

    def __init__(self, workspace: Workspace, directory: Path) -> None:
        self.workspace, self.directory = workspace, directory
        task = workspace.task
        assert isinstance(task, DecodingTask)
        self.task, self.evaluation = task, list(task.evaluation())
        self.step = tuple(tensor[:1].contiguous() for tensor in workspace.batches[-1].inputs)
        self.calls: dict[str, Calls] = {}
        self.steps: dict[str, Step] = {}
        self.rows: dict[str, dict] = {}

    def add(self, name: str, formats: dict[str, Format] | None) -> None:
        """Lower and build a policy; None is float."""
        space = self.workspace.space
        model, engine = self.directory / f"{name}.onnx", self.directory / f"{name}.engine.onnx"
        plan = self.workspace.fake_quantizer.plan(formats or dict.fromkeys((each.path for each in space.units), FP32))
        source = self.workspace.run.file("model.float.onnx")
        self.workspace.backend.lower(source, plan, space.units, model)
        record = ort.build_engine(model, engine)
        row: dict = {"megabytes": round(record.size_bytes / 1e6, 3), "kernels": dict(Counter(kernels(engine, record)))}
        if formats:
            edits = self.workspace.fake_quantizer.edits(plan)
            with torch.no_grad():
                expected = self.workspace.traced.run(self.step, edits)[0].numpy()
            exact = self.directory / f"{name}.exact.onnx"
            written = ort.build_engine(model, exact, exact=True)
            row |= {"exact_error": self.error(exact, written, expected)}
            row |= {"engine_error": self.error(engine, record, expected)}
            found = self.workspace.backend.unit_kernels(engine, (), space.units, formats)
            row["as_planned"] = f"{sum(each.agrees for each in found)} of {len(found)}"
            row["policy"] = {path: str(each) for path, each in formats.items()}
        session = open_session(engine, record)
        self.calls[name] = Calls(session, self.feeds(session))
        self.steps[name] = step_of(self.workspace, engine)
        row["nats"] = round(self.nats(self.steps[name]), 4)
        self.rows[name] = row

    def feeds(self, session: object) -> dict[str, np.ndarray]:
        """Return one token behind a full cache."""
        names = [entry.name for entry in session.get_inputs()]  # type: ignore[attr-defined]
        return {name: tensor.numpy() for name, tensor in zip(names, self.step, strict=True)}

    def error(self, engine: Path, record: object, expected: np.ndarray) -> float:
        """Mean absolute difference of the logits, in standard deviations of them."""
        session = open_session(engine, record)  # type: ignore[arg-type]
        logits = session.run(None, self.feeds(session))[0]
        return float(f"{np.abs(logits - expected).mean() / expected.std():.2e}")

    def nats(self, step: Step) -> float:
        """Return the nats per byte of the held-out text."""
        records = [one for batch in self.evaluation for one in self.task.records(step(*batch.inputs), batch.target)]
        return -self.task.metric_of(records)


def planned(workspace: Workspace, budget: str) -> tuple[dict[str, Format], dict]:
    """Return the plan of a run for a budget, and what the run says of its engine."""
    report = run_stages(workspace, Budget.from_text(budget), None, "shapley")
    assert report.latency is not None
    nats = {name: round(-stage.mean, 4) for name, stage in report.verification.stages.items()}
    interval = [round(each, 3) for each in (report.latency.interval.low, report.latency.interval.high)]
    said = {"met": report.met, "ratio": round(report.latency.ratio, 3), "interval": interval, "nats": nats}
    return read_policy(workspace).by_unit(workspace.space.groups), said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--budget", action="append", help="repeat for several plans [default: latency=0.5x]")
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(
        MODELS["shakespeare"][0], data=str(options.text), weights=str(options.weights), effort=options.effort,
        formats=FORMATS, samples=32,
    )  # fmt: skip
    budgets, start = options.budget or ["latency=0.5x"], time.process_time()
    with (
        tempfile.TemporaryDirectory() as directory,
        open_run(Path(directory) / "run", Progress(Console(stderr=True)), settings) as workspace,
    ):
        plans = {budget: planned(workspace, budget) for budget in budgets}
        seconds = time.process_time() - start
        engines = Engines(workspace, Path(directory))
        engines.add(FLOAT, None)
        for text in UNIFORM:
            engines.add(text, uniform(workspace.space.units, text))
        for budget, (policy, run) in plans.items():
            engines.add(budget, policy)
            engines.rows[budget] |= {"run": run}
        timings = measure_engines(engines.calls, FLOAT, Protocol(rounds=options.rounds * 5))
        prompt = engines.evaluation[0].inputs[0][:1, :PROMPT_TOKENS]
        written = speeds(engines.steps, prompt, options.tokens, options.rounds, engines.task.empty_cache(1))
        rows = []
        for name, row in engines.rows.items():
            interval = [round(each, 3) for each in timings[name].ratio_interval]
            rows.append({
                "plan": name, "cpu_ms": round(timings[name].latency_ms, 4), "ratio": round(timings[name].ratio, 3),
                "interval": interval, "tokens_per_cpu_second": written[name],
                "loss": round(row["nats"] - engines.rows[FLOAT]["nats"], 4), **row,
            })  # fmt: skip
    asked = " ".join(f"--budget {budget}" for budget in budgets)
    command = f"PYTHONPATH=.:benchmarks python benchmarks/decoding_speed.py TEXT WEIGHTS {asked}"
    clock = "CPU seconds of one thread, interleaved"
    keep("decoding_speed", command, [0], rows, run_cpu_seconds=round(seconds, 1), clock=clock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
