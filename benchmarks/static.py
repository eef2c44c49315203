"""Our engines against all that onnxruntime's `quantize_static` makes of the same float model, in one run on this CPU.

Usage: static.py CIFAR10_DIR RESNET20_WEIGHTS REAL_FOLDER [--networks autoencoder,resnet20,...] [--rounds 21]
       [--handmade 10] [--sets 4] [--images 2000]

One network at a time: the float model as smpq exports it (BatchNorm folded), prepared by `quant_pre_process`; six
engines of `quantize_static` (Q/DQ; activations and weights S8S8, U8S8, U8U8; a scale for each channel or for the
tensor; ranges from minimum to maximum of the calibration data), in sessions as onnxruntime makes them by itself; and
ours: the uniform formats of the target and the plans that people make by hand (`plans.py`). All are timed interleaved,
batch 1, one thread, by CPU time. Then the finalists again, thoroughly, with the fastest engine of `quantize_static`
as the baseline: `ours` is our fastest whose metric is not below that engine's, chance aside (the samples are the
same), and `behind` the ratio less 1. The float engine is one of ours. Metrics are of the first `--images` evaluation
samples. Rows of networks that are not asked for stay in the record.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from plans import all_handmade_plans
from records import RESULTS, keep

from deploy.run.float_onnx import export_float_model
from deploy.run.settings import Settings
from deploy.run.workspace import Workspace
from deploy.runner import ort as on_device
from deploy.runner.bench import Protocol, measure_engines
from deploy.runner.ort_sessions import CPU_TIME, FedSession
from deploy.stages.curve_engines import uniform_policies
from deploy.stages.run_all import open_run
from deploy.terminal.progress import Progress
from smpq.problem.policy import Policy
from smpq.value.collected import Collected
from smpq.value.metric import collected

NETWORKS = ("autoencoder", "resnet20", "digits-vit", "fastestdet", "dncnn", "mobilenetv2")
TASKS = {
    "autoencoder": "static_networks:autoencoder_task",
    "mobilenetv2": "static_networks:mobilenetv2_task",
    "resnet20": "cifar10-resnet20",
    "fastestdet": "examples.detection:task",
    "dncnn": "examples.denoising:task",
}
STATIC = {"S8S8": (QuantType.QInt8, QuantType.QInt8), "U8S8": (QuantType.QUInt8, QuantType.QInt8),
          "U8U8": (QuantType.QUInt8, QuantType.QUInt8)}  # fmt: skip
FINALISTS = 4
say = print


@dataclass
class Engine:
    """A session, the operators of the graph that it runs, and the plan where it is ours.

    `found` is what the evaluation data gave, once they have been through it.
    """

    session: ort.InferenceSession
    operators: dict[str, int]
    policy: Policy | None = None
    found: Collected | None = None

    @property
    def metric(self) -> float | None:
        return None if self.found is None else float(self.found.figure().value)


def open_network(name: str, directory: Path, options: argparse.Namespace) -> Workspace:
    torch.set_num_threads(1)
    real, files = options.real, {"fastestdet": "fastestdet.safetensors", "dncnn": "dncnn25.safetensors"}
    places = {"resnet20": (options.data, options.weights)} | {each: (real, real / file) for each, file in files.items()}
    data, weights = (str(path) if path else None for path in places.get(name, (None, None)))
    task = TASKS.get(name, name)
    settings = Settings(
        task=task,
        data=data,
        weights=weights,
        target="ort-cpu",
        samples=64 if name == "dncnn" else 256,
        formats="w8a8,w7a8,wt8a8,wt7a8,fp32",
    )
    return open_run(directory, Progress(), settings)


def static_engines(workspace: Workspace, directory: Path) -> dict[str, Engine]:
    """Return what `quantize_static` makes of the float model; one that fails is left out, and said."""
    prepared = directory / "prepared.onnx"
    model = str(export_float_model(workspace).resolve())
    here = Path.cwd()
    os.chdir(directory)  # it leaves files where it runs
    try:
        quant_pre_process(model, str(prepared))
    except Exception:  # noqa: BLE001 - "Incomplete symbolic shape inference": its documentation says to skip it then
        quant_pre_process(model, str(prepared), skip_symbolic_shape=True)
    finally:
        os.chdir(here)
    found = {}
    for name, (activations, weights) in STATIC.items():
        for per_channel in (False, True):
            full = f"static {name} per {'channel' if per_channel else 'tensor'}"
            model = directory / f"{full.replace(' ', '-')}.onnx"
            try:
                quantize_static(
                    str(prepared), str(model), _Reader(workspace), quant_format=QuantFormat.QDQ,
                    per_channel=per_channel, activation_type=activations, weight_type=weights,
                )  # fmt: skip
                found[full] = plain_engine(model)
            except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions share no base class
                say(f"{full}: {str(error).splitlines()[0][:160]}", file=sys.stderr, flush=True)
    return found


class _Reader(CalibrationDataReader):
    def __init__(self, workspace: Workspace) -> None:
        name, samples = workspace.traced.inputs[0], torch.cat([batch.inputs[0] for batch in workspace.batches])
        self._left = iter([{name: part.numpy()} for part in samples[:256].split(1)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def plain_engine(model: Path) -> Engine:
    """Open a file as anybody would, with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    optimized = model.with_suffix(".optimized.onnx")
    options.optimized_model_filepath = str(optimized)
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return Engine(session, operators(optimized))


def our_engines(workspace: Workspace, directory: Path, handmade: int) -> dict[str, Engine]:
    space = workspace.space
    plans = {f"uniform {_format_of(policy)}": policy for policy in uniform_policies(space)}
    formats = sorted({each for row in space.formats.values() for each in row if each != space.reference})
    for form in formats:
        plans |= {
            f"{form} {name}": policy for name, policy in list(all_handmade_plans(space, [form]).items())[1:handmade]
        }
    found = {}
    for name, policy in plans.items():
        if policy.key() in {each.policy.key() for each in found.values()}:
            continue
        candidate = workspace.candidates.candidate(policy)
        optimized = directory / f"{candidate.model.stem}.optimized.onnx"
        session = on_device.open_session(candidate.model, candidate.settings, optimized=optimized)
        found[name] = Engine(session, operators(optimized), policy)
    return found


def _format_of(policy: Policy) -> str:
    return "/".join(sorted({str(each) for each in policy.formats.values()} - {"fp32"})) or "fp32"


def operators(optimized: Path) -> dict[str, int]:
    graph = onnx.load(str(optimized), load_external_data=False).graph
    return dict(sorted(Counter(node.op_type for node in graph.node).items()))


def judged(workspace: Workspace, session: ort.InferenceSession, most: int) -> Collected:
    """Return what the task's metric keeps of an engine with one output, on the evaluation data or the first of it."""
    found, seen, name = collected(workspace.task), 0, workspace.traced.inputs[0]
    for number, batch in enumerate(workspace.task.evaluation()):
        (output,) = session.run(None, {name: np.ascontiguousarray(batch.inputs[0].numpy())})
        found.take(number, torch.from_numpy(output), batch)
        seen += len(output)
        if seen >= most:
            break
    return found


def measured(engines: Mapping[str, Engine], feeds: dict[str, np.ndarray], baseline: str, protocol: Protocol) -> dict:
    timed = {name: FedSession(engine.session, feeds, CPU_TIME) for name, engine in engines.items()}
    return measure_engines(timed, baseline, protocol)


def network_row(name: str, directory: Path, options: argparse.Namespace) -> dict:
    with open_network(name, directory / "run", options) as workspace:
        engines = {"float": plain_engine(export_float_model(workspace))}
        engines["float"].policy = workspace.space.uniform(workspace.space.reference)
        engines |= static_engines(workspace, directory) | our_engines(workspace, directory, options.handmade)
        feeds = {workspace.traced.inputs[0]: workspace.batches[0].inputs[0][:1].numpy()}
        first = measured(engines, feeds, "float", Protocol(rounds=options.rounds, sets=options.sets))
        judge = partial(_judge, workspace, engines, options.images)
        for each in sorted(engines, key=lambda each: first[each].ratio):
            told = f"{first[each].ratio:.3f}  {each}  {engines[each].operators}"
            say(told, file=sys.stderr, flush=True)
        static = [each for each in engines if each.startswith("static")]
        best = min(static, key=lambda each: first[each].ratio)
        ours = sorted((each for each in engines if engines[each].policy), key=lambda each: first[each].ratio)
        worthy = [each for each in ours[: 3 * FINALISTS] if not_worse(judge(best), judge(each))][:FINALISTS]
        near = sorted(static, key=lambda each: first[each].ratio)[:2]
        final = {each: engines[each] for each in dict.fromkeys(["float", *near, *worthy])}
        again = measured(final, feeds, best, Protocol(rounds=2 * options.rounds, round_ms=20.0, sets=options.sets))
        chosen = min(worthy, key=lambda each: again[each].ratio, default=None)
        row = {
            "network": name, "samples": judge("float").samples, "metric": workspace.task.metric_name,
            "float_metric": round(judge("float").figure().value, 5), "static": best,
            "static_metric": round(engines[best].metric, 5), "static_to_float": round(1 / again["float"].ratio, 4),
            "ours": chosen, "behind": None,
        }  # fmt: skip
        if chosen is not None:
            low, high = again[chosen].ratio_interval
            row |= {
                "ours_metric": round(engines[chosen].metric, 5),
                "ours_to_float": round(again[chosen].ratio / again["float"].ratio, 4),
                "behind": round(again[chosen].ratio - 1, 4), "interval": [round(low - 1, 4), round(high - 1, 4)],
            }  # fmt: skip
        row["engines"] = [
            {
                "name": each, "ratio": round(first[each].ratio, 4),
                "interval": [round(end, 4) for end in first[each].ratio_interval],
                "metric": None if engine.metric is None else round(engine.metric, 5), "operators": engine.operators,
            }
            for each, engine in engines.items()
        ]  # fmt: skip
        return row


def _judge(workspace: Workspace, engines: Mapping[str, Engine], most: int, name: str) -> Collected:
    engine = engines[name]
    if engine.found is None:
        engine.found = judged(workspace, engine.session, most)
    return engine.found


def not_worse(static: Collected, ours: Collected) -> bool:
    """Whether the metric is not below another one, or by chance alone: the samples are the same."""
    change = static.change_to(ours)
    return change.value >= 0 or change.interval.high >= 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("real", type=Path)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--handmade", type=int, default=10)
    parser.add_argument("--sets", type=int, default=4)
    parser.add_argument("--images", type=int, default=2000)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    file = RESULTS / "static.json"
    for name in options.networks.split(","):
        with tempfile.TemporaryDirectory() as directory:
            row = network_row(name, Path(directory), options)
        say({key: entry for key, entry in row.items() if key != "engines"}, file=sys.stderr, flush=True)
        known = json.loads(file.read_text())["rows"] if file.is_file() else []
        rows = {each["network"]: each for each in [*known, row]}
        command = "python benchmarks/static.py CIFAR10_DIR WEIGHTS REAL_FOLDER"
        keep("static", command, [0], [rows[each] for each in NETWORKS if each in rows])


if __name__ == "__main__":
    main()
