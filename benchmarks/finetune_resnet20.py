"""Fine-tuned ResNet-20 on CIFAR-10: few bits a weight, the project's own policies, top-1 on the test images before and
after.

Usage: finetune_resnet20.py CIFAR10_DIR WEIGHTS [--rows uniform-2.0,2.25,2.5,a4-3.0] [--epochs N] [--keep DIRECTORY]

Every layer counts towards the average bits, the first and the last included. Policies come from one-at-a-time scores,
the MILP and two rounds of marginals on 512 calibration images. The test images are used for the two figures of a row
and for nothing else. A row that the record holds is not trained again when it was made with the same settings, and its
policy is not searched again; `--keep` also stores the fine-tuned weights.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from records import RESULTS, keep

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import FP32, Format, formats_from_text
from calib.network.fold import trace_folded
from calib.network.units import find_units
from calib.tasks import load_task
from smpq.problem.costs import cost_models
from smpq.problem.groups import find_groups
from smpq.problem.policy import Policy, Space
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from smpq.solve.allocate import Ceiling
from smpq.solve.effort import Effort
from smpq.solve.search import choose
from smpq.training.finetune import Subject, TrainingProgress, finetune
from smpq.training.settings import FineTuneSettings
from smpq.value.evaluate import Evaluator
from smpq.value.value import PolicyValue

NAME = "finetune_resnet20"
ROWS = {"uniform-2.0": (8, 2.0, 4.0), "2.25": (8, 2.25, 4.0), "2.5": (8, 2.5, 4.0), "a4-3.0": (4, 3.0, 1.0)}
"""Bits of activations, of weights on average, and epochs."""
WEIGHT_BITS = (2, 3, 4, 8)
SAMPLES = 512
EFFORT = Effort(scoring=0, rounds=2, exchanges=2, evaluations=200)


class Bench:
    """The network, calibrated; weights are rounded when a policy asks for them."""

    def __init__(self, data: Path, weights: Path) -> None:
        self.task = load_task("cifar10-resnet20", data, weights)
        self.batches = list(self.task.calibration())
        example = tuple(tensor[:2] for tensor in self.batches[0].inputs)
        self.model = self.task.model()
        self.traced, self.folded = trace_folded(self.model, example)
        self.units, _ = find_units(self.traced)
        self.fake = FakeQuantizer(
            self.traced,
            self.units,
            Calibration(self.traced, self.units, self.batches, CalibrationSettings()),
            QdqRules("affine"),
        )
        self.evaluation = list(self.task.evaluation())

    def top1(self, fake: FakeQuantizer, policy: dict[str, Format]) -> float:
        edits = fake.edits(fake.plan(policy))
        values = [self.task.metric(fake.traced.run(batch.inputs, edits), batch.target) for batch in self.evaluation]
        return 100 * float(torch.cat(values).mean())

    def policy(self, activation_bits: int, weight_bits: float) -> dict[str, Format]:
        """Return unit path -> format: the search's choice, whose first layer reads 8 bits."""
        groups = find_groups(self.traced, self.units)
        first = groups[0].name
        formats = {
            group.name: formats_from_text(
                ",".join(f"w{b}a{8 if group.name == first else activation_bits}" for b in WEIGHT_BITS)
            )
            for group in groups
        }
        space = Space(groups, formats, FP32)
        if weight_bits == min(WEIGHT_BITS):
            return Policy({name: row[0] for name, row in formats.items()}).by_unit(groups)
        value = Evaluator(
            PolicyValue(self.fake, space, self.task, self.batches[: SAMPLES // len(self.batches[0].target)])
        )
        best = Policy({name: row[-1] for name, row in formats.items()})
        moves = [(name, chosen) for name, row in formats.items() for chosen in row]
        values = value.many([best, *(best.with_format(*move) for move in moves)])
        scores: dict[str, dict[Format, float]] = {name: {} for name in formats}
        for (name, chosen), found in zip(moves, values[1:], strict=True):
            scores[name][chosen] = found - values[0]
        bits = cost_models(space, self.traced)["avg_bits"]
        choice = choose(value, space, {"one at a time": scores}, [Ceiling(bits, weight_bits)], EFFORT)
        return choice.policy.by_unit(groups)


def row(bench: Bench, name: str, settings: FineTuneSettings, directory: Path | None, known: dict | None) -> dict:
    activation_bits, limit, _ = ROWS[name]
    start = time.monotonic()
    if known is None:
        policy = bench.policy(activation_bits, limit)
        search_seconds = time.monotonic() - start
    else:
        policy = {path: Format.from_text(text) for path, text in known["policy"].items()}
        search_seconds = known["search_seconds"]
    bits = sum(unit.parameters * policy[unit.path].weight_bits for unit in bench.units)
    average = bits / sum(unit.parameters for unit in bench.units)
    before = bench.top1(bench.fake, policy)
    print(
        f"{name}: {average:.3f} bits, {before:.2f} % before, searched in {search_seconds:.0f} s",
        file=sys.stderr,
        flush=True,
    )

    def report(progress: TrainingProgress) -> None:
        print(f"{name}: step {progress.step}/{progress.steps} loss {progress.loss:.4f}", file=sys.stderr, flush=True)

    subject = Subject(
        bench.task, bench.traced, bench.units, bench.model, bench.folded, bench.fake.plan(policy), name, "benchmark"
    )
    tuned = finetune(subject, bench.batches, settings, report)
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        tuned.save(directory / f"{name}.safetensors")
    fake = FakeQuantizer(
        tuned.traced(bench.traced), bench.units, tuned.calibration(bench.fake.calibration), QdqRules("affine")
    )
    after = bench.top1(fake, policy)
    print(f"{name}: {after:.2f} % after, {tuned.seconds:.0f} s", file=sys.stderr, flush=True)
    return {
        "name": name,
        "avg_bits": average,
        "activation_bits": activation_bits,
        "top1_before": before,
        "top1": after,
        "images": sum(len(batch.target) for batch in bench.evaluation),
        "epochs": settings.epochs,
        "seconds": tuned.seconds,
        "search_seconds": search_seconds,
        "kept": tuned.kept,
        "calibration_before": asdict(tuned.before),
        "calibration_after": asdict(tuned.after),
        "settings": asdict(settings),
        "policy": {path: str(chosen) for path, chosen in policy.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--epochs", type=float, help="instead of those of the row")
    parser.add_argument(
        "--lr",
        type=float,
        default=FineTuneSettings.learning_rate,
        help="peak learning rate; a tenth of it for step sizes",
    )
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(arguments.data, arguments.weights)
    float_top1 = bench.top1(bench.fake, dict.fromkeys((unit.path for unit in bench.units), FP32))
    record = RESULTS / f"{NAME}.json"
    rows = json.loads(record.read_text())["rows"] if record.exists() else []
    for name in arguments.rows.split(","):
        settings = FineTuneSettings(
            epochs=arguments.epochs or ROWS[name][2], learning_rate=arguments.lr, step_learning_rate=arguments.lr / 10
        )
        if any(old["name"] == name and old["settings"] == asdict(settings) for old in rows):
            continue
        known = next((old for old in rows if old["name"] == name), None)
        made = row(bench, name, settings, arguments.keep, known)
        rows = json.loads(record.read_text())["rows"] if record.exists() else []  # others may have been added meanwhile
        rows = [*(old for old in rows if old["name"] != name), made]
        command = "python benchmarks/finetune_resnet20.py CIFAR10_DIR WEIGHTS"
        keep(NAME, command, [settings.seed], rows, float_top1=float_top1, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
