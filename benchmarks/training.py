"""Methods that train, on ResNet-20 and CIFAR-10: how small the weights become, and top-1 on the test images.

Usage: training.py CIFAR10_DIR WEIGHTS [--rows bsq-0.07,...] [--epochs N] [--directory DIRECTORY]

Every layer counts towards the size, the first and the last included, with its steps and biases. Activations have 8
bits, or 4 where the name says so, of which the image keeps 8. A row is one training: float weights to a policy with
weights within its budget. The `uniform` row trains two bits everywhere in the same loop, with as many epochs, and a
`fixed` row the widths that another row found. The 10,000 test images are used once, for the figure of a row. What is
trained is kept in DIRECTORY after every epoch, so that the same command goes on after a kill; rows that the record
holds are not made again.
"""

import argparse
import json
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from finetune_resnet20 import Bench
from records import RESULTS, keep

from calib.formats.format import FP32, Format, formats_from_text
from smpq.methods import METHODS, Limits, SearchProblem, Solution
from smpq.problem.budget import Budget
from smpq.problem.costs import cost_models
from smpq.problem.groups import find_groups
from smpq.problem.policy import Space
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from smpq.solve.allocate import Ceiling
from smpq.training.bits.settings import BsqSettings, CpqSettings, SdqSettings
from smpq.training.settings import FineTuneSettings

NAME = "training"
WIDE = "w2a8,w3a8,w4a8,w5a8,w6a8,w7a8,w8a8"
FEW = "w1a8,w2a8,w3a8,w4a8"
SETTINGS = {
    "bsq": BsqSettings(),
    "sdq": SdqSettings(),
    "cpq": CpqSettings(),
}
ROWS = {
    "sdq-2": ("sdq", "avg_bits=2", FEW, 4.0),
    # its widest policy is within the budget at once: two bits everywhere, in the same loop
    "uniform-2": ("sdq", "avg_bits=2", "w1a8,w2a8", 4.0),
    "bsq-14x": ("bsq", "avg_bits=2.2857", WIDE, 4.0),
    "bsq-10x": ("bsq", "avg_bits=3.2", WIDE, 3.0),
    "bsq-0.07": ("bsq", "size=0.07x", WIDE, 1.0),
    # as uniform-2: four bits everywhere
    "cpq-w4a4": ("cpq", "avg_bits=4", "w3a4,w4a4", 4.0),
    "cpq-3-a4": ("cpq", "avg_bits=3", "w2a4,w3a4,w4a4", 4.0),
    "fixed-3-a4": ("cpq", "", "cpq-3-a4", 4.0),
}
"""Method, budget, formats, epochs. A `fixed` row has the widths of the row that stands in place of its formats."""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Watching:
    """Prints what a method says, and keeps it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def enough(self) -> bool:
        return False

    def say(self, text: str) -> None:
        self.lines.append(text)
        say(text)

    warn = say

    def step(self, _: str) -> nullcontext:
        return nullcontext()

    @contextmanager
    def bar(self, _: str, total: int):
        yield lambda: total


class Kept:
    """A directory of its own for a row."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    def has(self, name: str) -> bool:
        return self.file(name).is_file()

    def file(self, name: str) -> Path:
        return self._directory / name

    def write(self, record: object) -> None:
        """Write nothing: nobody reads the records of a run here."""


def offered(groups: tuple, formats: str) -> dict[str, tuple[Format, ...]]:
    """The formats by group; the image has 8 bits."""
    found = dict.fromkeys((group.name for group in groups), formats_from_text(formats))
    found[groups[0].name] = formats_from_text(formats.replace("a4", "a8"))
    return found


def fixed(groups: tuple, policy: dict[str, str]) -> dict[str, tuple[Format, ...]]:
    """The formats of a policy, each beside the next width down, since a training wants two."""
    found = {}
    for group in groups:
        own = Format.from_text(policy[group.units[0].path])
        assert own.activation is not None
        found[group.name] = (Format.from_text(f"w{int(own.weight_bits) - 1}a{own.activation.bits}"), own)
    return found


def problem_of(
    bench: Bench,
    groups: tuple,
    formats: dict[str, tuple[Format, ...]],
    budget: str,
    how: FineTuneSettings,
    files: Kept,
    watching: Watching,
) -> SearchProblem:
    space = Space(groups, formats, FP32)
    costs = cost_models(space, bench.traced)
    ceilings = tuple(
        Ceiling(costs[limit.cost], limit.absolute(costs[limit.cost].float_total))
        for limit in Budget.from_text(budget).costs
    )

    def evaluator() -> None:
        raise NotImplementedError("a method that trains asks for no policy's value")

    return SearchProblem(
        bench.task,
        bench.traced,
        bench.model,
        bench.folded,
        space,
        costs,
        ceilings,
        bench.batches,
        bench.batches[:4],
        "kl",
        Limits(),
        how.seed,
        "cpu",
        "benchmark",
        watching,
        files,
        lambda: bench.fake,
        evaluator,  # type: ignore[arg-type]
        how,
    )


def top1(bench: Bench, solution: Solution, space: Space) -> float:
    tuned = solution.weights
    fake = FakeQuantizer(
        tuned.traced(bench.traced), bench.units, tuned.calibration(bench.fake.calibration), QdqRules("affine")
    )
    return bench.top1(fake, solution.policy.by_unit(space.groups))


def row(bench: Bench, name: str, epochs: float, directory: Path, rows: list[dict]) -> dict:
    method, budget, text, _ = ROWS[name]
    groups = find_groups(bench.traced, bench.units)
    other = next((old for old in rows if old["name"] == text), None)
    if name.startswith("fixed"):
        if other is None:
            sys.exit(f"{name} needs the row {text}")
        budget = f"avg_bits={other['avg_bits'] + 1e-6:.9g}"
    formats = fixed(groups, other["policy"]) if other else offered(groups, text)
    how, watching, files = FineTuneSettings(epochs=epochs, bfloat16=True), Watching(), Kept(directory / name)
    problem = problem_of(bench, groups, formats, budget, how, files, watching)
    own = SETTINGS[method]
    started = time.process_time()
    solution = METHODS[method].function(problem, own)
    assert isinstance(solution, Solution)
    seconds = time.process_time() - started
    solution.weights.save(files.file("finetuned.safetensors"))
    costs, policy = problem.costs, solution.policy
    bits = costs["avg_bits"].total(policy)
    found = {
        "name": name,
        "method": f"{name.partition('-')[0]} in the loop of {method}"
        if name.startswith(("uniform", "fixed"))
        else method,
        "budget": budget,
        "network": f"ResNet-20, {epochs:g} epochs",
        "epochs": epochs,
        "avg_bits": bits,
        "times_smaller_weights": 32 / bits,
        "size_share": costs["size"].total(policy) / costs["size"].float_total,
        "share_of_budget": [c.model.total(policy) / c.limit for c in problem.ceilings],
        "top1": top1(bench, solution, problem.space),
        "images": sum(len(batch.target) for batch in bench.evaluation),
        "cpu_seconds": seconds,
        "calibration_before": asdict(solution.weights.before),
        "calibration_after": asdict(solution.weights.after),
        "notes": list(solution.notes),
        "said": watching.lines,
        "settings": asdict(how) | asdict(own),
        "policy": {path: str(chosen) for path, chosen in policy.by_unit(problem.space.groups).items()},
    }
    say(f"{name}: {bits:.3f} bits, {found['top1']:.2f} %, {seconds:.0f} CPU s")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--epochs", type=float, help="instead of those of the row")
    parser.add_argument("--directory", type=Path, default=Path("training"), help="where unfinished work is kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(arguments.data, arguments.weights)
    float_top1 = bench.top1(bench.fake, dict.fromkeys((unit.path for unit in bench.units), FP32))
    record = RESULTS / f"{NAME}.json"
    for name in arguments.rows.split(","):
        epochs = arguments.epochs or ROWS[name][-1]
        rows = json.loads(record.read_text())["rows"] if record.exists() else []
        if any(old["name"] == name and old["epochs"] == epochs for old in rows):
            continue
        made = row(bench, name, epochs, arguments.directory, rows)
        rows = json.loads(record.read_text())["rows"] if record.exists() else []  # others may have been added meanwhile
        rows = [*(old for old in rows if old["name"] != name), made]
        command = "OMP_NUM_THREADS=1 python benchmarks/training.py CIFAR10_DIR WEIGHTS"
        keep(NAME, command, [0], rows, float_top1=float_top1, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
