"""SMPQ's claim where it is hard: weights and activations of 2, 3 and 4 bits, ResNet-20 on CIFAR-10.

Usage: claim.py CIFAR10_DIR WEIGHTS [--seeds 0,1] [--ceilings w2a3,w3a3] [--rows uniform,smpq,...]
       [--epochs 2] [--directory DIRECTORY] [--record]

First and last layer have 8 bits; the ceiling is the bit operations of a uniform policy. For a seed:

1. Two supernets, each 4 whole epochs: a mixture of all operations (SMPQ, DMPQ), and paths (`smpq-paths`).
2. `uniforms`: what the nine uniform policies are worth in each supernet, as KL on 512 held-out images.
3. `significant`: the share of the mixture's Shapley values that are further from 0 than two standard errors.
4. Policies within each ceiling, one a row of `--rows`. `uniform-w3a2` and the like are uniform policies. `dmpq-argmax`
   takes the operations with the largest shares; where they cost too much, the widths whose shares fall least for each
   bit operation saved are lowered first. `random-1` to `random-12` are drawn within 3 % below the ceiling, the same for
   all seeds. The others are methods, each with its own scores and allocation.
5. Each policy is fine-tuned for `--epochs`, all alike, and judged once on the 10,000 test images.

Nothing is made twice: DIRECTORY keeps supernets epoch by epoch, scores and top-1, and the same command goes on after a
kill. Several commands with other `--rows` or `--seeds` may share it. `--record` adds the rows to those that
`results/claim.json` holds, with the differences from `uniform` and `dmpq-argmax` over seeds and Student's intervals.
"""

import argparse
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finetune_resnet20 import Bench
from records import RESULTS, keep
from supernet_cifar10 import interval
from training import Kept, Watching

from calib.formats.format import FP32, Format, formats_from_text
from smpq.methods import METHODS, Limits, SearchProblem
from smpq.methods.problem import Objective
from smpq.methods.supernet import train_supernet
from smpq.problem.costs import cost_models
from smpq.problem.groups import find_groups
from smpq.problem.policy import Policy, Space
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from smpq.solve.allocate import Ceiling
from smpq.supernet.network import Supernet, keys_of, operations_of
from smpq.supernet.paths import PathValue
from smpq.supernet.settings import PATHS, GameSettings, SupernetSettings
from smpq.supernet.state import SupernetState
from smpq.training.finetune import Subject, finetune
from smpq.training.settings import FineTuneSettings
from smpq.value.evaluate import Evaluator
from smpq.value.value import PolicyValue

NAME = "claim"
WIDTHS = (2, 3, 4)
UNIFORMS = [f"w{w}a{a}" for w in WIDTHS for a in WIDTHS]
RANDOM = 12
ROWS = (
    "uniform", "smpq", "smpq-paths", "dmpq", "dmpq-argmax", "shapley", "hawq", "largest-first",
    *(f"random-{number}" for number in range(1, RANDOM + 1)),
)  # fmt: skip
Place = tuple[int, str, str, float]
"""Seed, ceiling, row and epochs."""
JUDGED = 4
"""Held-out batches of 128."""
BY_PATHS = replace(PATHS, bfloat16=True)
MIXTURE = SupernetSettings(epochs=4, samples=256, bfloat16=True, game=GameSettings(("metric", "loss", "kl")))


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Claim:
    """The network, its space, and what was made already."""

    def __init__(self, bench: Bench, directory: Path) -> None:
        self.bench, self.directory = bench, directory
        groups = find_groups(bench.traced, bench.units)
        formats = dict.fromkeys((group.name for group in groups), formats_from_text(",".join(UNIFORMS)))
        for end in (groups[0], groups[-1]):
            formats[end.name] = formats_from_text("w8a8")
        self.space = Space(groups, formats, FP32)
        self.bops = cost_models(self.space, bench.traced)["bops"]

    def uniform(self, text: str) -> Policy:
        wanted = Format.from_text(text)
        rows = self.space.formats
        return Policy({name: wanted if wanted in row else row[0] for name, row in rows.items()})

    def ceiling(self, text: str) -> Ceiling:
        return Ceiling(self.bops, self.bops.total(self.uniform(text)))

    def problem(self, seed: int, ceilings: tuple[Ceiling, ...], directory: Path) -> SearchProblem:
        bench, judging = self.bench, self.bench.batches[:JUDGED]
        return SearchProblem(
            bench.task, bench.traced, bench.model, bench.folded, self.space, {"bops": self.bops}, ceilings,
            bench.batches, judging, "kl", Limits(), seed, "cpu", "benchmark", Watching(), Kept(directory),
            lambda: bench.fake, lambda: Evaluator(PolicyValue(bench.fake, self.space, bench.task, judging)),
        )  # fmt: skip

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` gives, which is kept under a name."""
        path = self.directory / f"{name}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            started = time.process_time()
            found = {"found": make(), "cpu_seconds": round(time.process_time() - started, 1)}
            path.write_text(json.dumps(found))
        return json.loads(path.read_text())

    def supernet(self, seed: int, *, paths: bool) -> tuple[Supernet, SupernetState]:
        directory = self.directory / f"seed{seed}-{'paths' if paths else 'mixture'}"
        return train_supernet(self.problem(seed, (), directory), BY_PATHS if paths else MIXTURE)

    def of_supernets(self, seed: int) -> dict[str, Any]:
        uniforms = {
            kind: self.once(f"uniforms/seed{seed}-{kind}", partial(self.uniforms, seed, paths=kind == "paths"))["found"]
            for kind in ("mixture", "paths")
        }
        significant = self.once(f"significant/seed{seed}", partial(self.significant, seed))["found"]
        return {"seed": seed, "uniforms": uniforms, "significant": significant}

    def uniforms(self, seed: int, *, paths: bool) -> dict[str, float]:
        supernet, _ = self.supernet(seed, paths=paths)
        value = PathValue(supernet, self.bench.batches[:JUDGED])
        found = dict(value([self.uniform(text) for text in UNIFORMS]))
        return {text: found[index] for index, text in enumerate(UNIFORMS)}

    def significant(self, seed: int) -> dict[str, float]:
        _, state = self.supernet(seed, paths=False)
        shares = {}
        for value, found in state.contributions.items():
            far = abs(found.mean) > 2 * found.standard_errors()[1]
            for side in ("weight", "activation"):
                own = [operation.side == side for operation in found.operations]
                shares[f"{value}, {side}"] = float(far[own].mean())
        return shares

    def policy(self, row: str, seed: int, ceiling: str) -> Policy:
        limit = self.ceiling(ceiling)
        if row == "uniform":
            return self.uniform(ceiling)
        if row.startswith("uniform-"):
            return self.uniform(row.removeprefix("uniform-"))
        if row.startswith("random-"):
            return self._random(int(row.removeprefix("random-")), limit)
        if row == "dmpq-argmax":
            return self._argmax(self.supernet(seed, paths=False)[0], limit)
        directory = self.directory / f"seed{seed}-{'paths' if row == 'smpq-paths' else 'mixture'}"
        if row in ("smpq", "dmpq", "smpq-paths"):
            self.supernet(seed, paths=row == "smpq-paths")
        method, problem = METHODS[row], self.problem(seed, (limit,), directory)
        objective = method.score(problem)
        assert isinstance(objective, Objective)
        return method.policy(self.space, objective.scores, [limit])

    def _argmax(self, supernet: Supernet, limit: Ceiling) -> Policy:
        shares = {
            (group.name, operation.name): share
            for group in self.space.groups
            for key in keys_of(group.name)
            for operation, share in zip(supernet.rows[key], supernet.shares()[key], strict=True)
        }

        def worth(name: str, chosen: Format) -> float:
            return sum(shares[name, operation] for operation in operations_of(chosen))

        rows = self.space.formats
        policy = Policy({name: max(row, key=lambda chosen: worth(name, chosen)) for name, row in rows.items()})
        while self.bops.total(policy) > limit.limit:
            total, moves = self.bops.total(policy), []
            for name, row in rows.items():
                for chosen in row:
                    moved = policy.with_format(name, chosen)
                    saved = total - self.bops.total(moved)
                    if saved > 0:
                        lost = worth(name, policy.formats[name]) - worth(name, chosen)
                        moves.append((lost / saved, name, moved))
            policy = min(moves, key=lambda move: move[:2])[2]
        return policy

    def _random(self, number: int, limit: Ceiling) -> Policy:
        generator, rows = np.random.default_rng((7, number)), self.space.formats
        while True:
            policy = Policy({name: row[generator.integers(len(row))] for name, row in rows.items()})
            names = iter(generator.permutation(list(rows)))
            while self.bops.total(policy) > limit.limit and (name := next(names, None)) is not None:
                own = policy.formats[name]
                fewer = [
                    f for f in rows[name] if f.weight_bits * f.activation_bits < own.weight_bits * own.activation_bits
                ]
                if fewer:
                    policy = policy.with_format(name, fewer[generator.integers(len(fewer))])
            if 0.97 <= self.bops.total(policy) / limit.limit <= 1:
                return policy

    def tuned(self, policy: Policy, settings: FineTuneSettings) -> float:
        bench, by_unit = self.bench, policy.by_unit(self.space.groups)
        plan = bench.fake.plan(by_unit)
        subject = Subject(
            bench.task, bench.traced, bench.units, bench.model, bench.folded, plan, policy.key(), "benchmark"
        )
        tuned = finetune(subject, bench.batches[:JUDGED], settings)
        fake = FakeQuantizer(
            tuned.traced(bench.traced), bench.units, tuned.calibration(bench.fake.calibration), QdqRules("affine")
        )
        return bench.top1(fake, by_unit)

    def row(self, seed: int, ceiling: str, row: str, epochs: float) -> dict[str, Any]:
        known = f"seed{seed}/{ceiling}/{row}"
        chosen = self.once(
            f"policies/{known}", lambda: {k: str(f) for k, f in self.policy(row, seed, ceiling).formats.items()}
        )
        policy = Policy({name: Format.from_text(text) for name, text in chosen["found"].items()})
        share = self.bops.total(policy) / self.ceiling(ceiling).limit
        say(f"{known}: {share:.3f} of the ceiling, chosen in {chosen['cpu_seconds']:.0f} CPU s")
        key = hashlib.sha256(policy.key().encode()).hexdigest()[:16]
        settings = FineTuneSettings(epochs=epochs, bfloat16=True, seed=seed)
        top1 = self.once(f"top1/seed{seed}/{epochs:g}-{key}", lambda: self.tuned(policy, settings))
        say(f"{known}: {top1['found']:.2f} %, {top1['cpu_seconds']:.0f} CPU s")
        return {
            "seed": seed, "ceiling": ceiling, "row": row, "epochs": epochs, "share_of_ceiling": share,
            "top1": top1["found"], "cpu_seconds": top1["cpu_seconds"], "cpu_seconds_to_choose": chosen["cpu_seconds"],
            "policy": chosen["found"],
        }  # fmt: skip


def _product(chosen: Format) -> float:
    return chosen.weight_bits * chosen.activation_bits


def differences(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By ceiling, epochs, row and what it is compared with: over the seeds that have both."""
    top1 = {(row["ceiling"], row["epochs"], row["row"], row["seed"]): row["top1"] for row in rows}
    found: dict[str, Any] = {}
    for against in ("uniform", "dmpq-argmax"):
        apart: dict[str, list[float]] = {}
        for (ceiling, epochs, row, seed), value in top1.items():
            other = top1.get((ceiling, epochs, against, seed))
            if other is not None and row != against:
                apart.setdefault(f"{ceiling}, {epochs:g} epochs: {row} - {against}", []).append(value - other)
        found |= {name: interval(values) for name, values in apart.items()}
    return found


def recorded(supernets: dict[str, Any]) -> tuple[dict[Place, dict[str, Any]], dict[int, dict[str, Any]]]:
    """Return what the record holds of supernets that were trained so: rows by their place, and parts by seed."""
    path = RESULTS / f"{NAME}.json"
    record = json.loads(path.read_text()) if path.is_file() else {}
    if record.get("supernets") != supernets:
        return {}, {}
    rows = {tuple(row[name] for name in ("seed", "ceiling", "row", "epochs")): row for row in record["rows"]}
    return rows, {part["seed"]: part for part in record["parts"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--ceilings", default="w2a3,w3a3")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--directory", type=Path, default=Path("claim"), help="where all that is made is kept")
    parser.add_argument("--record", action="store_true", help="also write results/claim.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    claim = Claim(Bench(arguments.data, arguments.weights), arguments.directory)
    supernets = {"mixture": MIXTURE.to_json(), "paths": BY_PATHS.to_json()}
    rows, parts = recorded(supernets)
    for seed in map(int, arguments.seeds.split(",")):
        for ceiling, row in itertools.product(arguments.ceilings.split(","), arguments.rows.split(",")):
            place = (seed, ceiling, row, arguments.epochs)
            if place not in rows:
                rows[place] = claim.row(*place)
        if arguments.record and seed not in parts:
            parts[seed] = claim.of_supernets(seed)
    if arguments.record:
        found = list(rows.values())
        seeds, ceilings, names = (",".join(dict.fromkeys(str(place[index]) for place in rows)) for index in range(3))
        chosen = f"--seeds {seeds} --ceilings {ceilings} --rows {names}"
        command = f"OMP_NUM_THREADS=1 python benchmarks/claim.py CIFAR10_DIR WEIGHTS {chosen} --record"
        of_each = [parts[seed] for seed in sorted(parts)]
        keep(NAME, command, sorted(parts), found, supernets=supernets, parts=of_each, differences=differences(found))


if __name__ == "__main__":
    main()
