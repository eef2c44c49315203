"""A small language model whose weights are rounded to few bits: nats per token by method, average bits and seed.

Usage: language.py DATA_DIR [--methods 'nearest;gptq'] [--bits 4,3,2] [--seeds 0,1,2]
       language.py TEXT --model shakespeare --weights WEIGHTS [...]

`stories260k`, the default: DATA_DIR holds `stories260k.safetensors`, `tok512.json` and `tinystories.txt`
(`examples/language.py`). All 35 linear layers have blocks with zero points, of 32 inputs, and of 43 where 32 does not
divide them (172 inputs); the embedding, which is the head too, stays in float. A seed draws the 32 calibration rows
from the stories behind the 120 that are measured; seed 0 takes the first ones.

`shakespeare`: the byte model of `examples/shakespeare.py` with the weights of `train_language.py`, 28 linear layers in
blocks of 128 inputs. The record is `language_shakespeare.json`. Seeds draw from the end of what was trained on.

`bits` are those of the values on average, `stored_bits` count scales, zero points and tables too. Methods:

- `nearest`, `gptq` and `descent` round all layers to one width.
- `slim-llm` has widths inside of a layer and rounding as the paper has them, "gptq, ranges of slim-llm" its rounding
  alone, "slim-llm, gptq with clip search" its widths alone.
- `mg-ptq` has widths inside of a layer that a graph network chooses, and GPTQ.
- `cmpq` has a table for each input channel, and outliers.
- "shapley, ..." searches the average of each layer; widths inside of it are those that leave the least error.
- "..., reconstructed" is the same policy after `smpq reconstruct`, without labels, on the 32 calibration rows.

`cpu_seconds` are those of this process for all but the measurement: calibration, rounding and search. Rows that the
record holds, by the same settings, are kept.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from language_models import MODELS, Model
from reconstruction import Bench
from records import RESULTS, keep

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import FP32, Format
from calib.formats.table_weights import TableWeight
from calib.network.units import Unit
from smpq.problem.costs import cost_models
from smpq.problem.groups import find_groups
from smpq.problem.policy import Space
from smpq.reconstruction.settings import ReconstructionSettings
from smpq.scoring.shapley import ScoringLimits, estimate
from smpq.solve.allocate import Ceiling
from smpq.solve.effort import Effort
from smpq.solve.search import choose, confirm
from smpq.value.evaluate import Evaluator
from smpq.value.value import PolicyValue


@dataclass(frozen=True)
class Subject:
    """A model, its data, and a file of weights where the data have none."""

    model: Model
    data: Path
    weights: Path | None


Row = Callable[[Subject, float, int, list[dict]], dict]
"""Makes a row from the model with its data, the bits, the seed and the rows so far."""
OFFERED = ("m1.5", "m2", "m2.5", "m3", "m3.5", "m4")
BUDGETS = (2.0, 2.5, 3.0)
EFFORT = Effort(scoring=240, rounds=2, exchanges=3, evaluations=120, finalists=3)
RECONSTRUCTION = ReconstructionSettings(iterations=200, batch=4)
JUDGED, UNSEEN = 1, 3
"""Batches of four calibration rows that policies are judged on, and others that confirm."""


class Decoder(Bench):
    """The linear layers of the network, calibrated with one seed and rounded one way."""

    def __init__(self, subject: Subject, seed: int, rounding: str, widths: str = "error") -> None:
        start = time.process_time()
        self.widths, self.sizes = widths, subject.model.blocks
        super().__init__(subject.model.task(subject.data, subject.weights, seed), rounding)
        self.seed = seed
        self.calibrated = time.process_time() - start

    def calibrate(self, rounding: str) -> None:
        """Leave the embedding out, which is the head too."""
        self.units = tuple(unit for unit in self.units if not unit.gathers)
        settings = CalibrationSettings(rounding=rounding, widths=self.widths)
        self.calibration = Calibration(self.traced, self.units, self.batches, settings)

    def blocks(self, weight: str) -> dict[str, Format]:
        """Return the format of each layer, given the number type of the weights."""
        return {unit.path: self.blocks_of(unit, weight) for unit in self.units}

    def blocks_of(self, unit: Unit, weight: str) -> Format:
        """Return the format of one layer, given the number type of its weight."""
        block = next(size for size in self.sizes if unit.in_features % size == 0)
        return Format.from_text(f"w{weight}a16b{block}")

    def row(self, formats: dict[str, Format], **more: object) -> dict:
        """Round and measure a policy."""
        start = time.process_time()
        fake = self.fake()
        fake.plan(formats)
        rounded = time.process_time() - start
        weights = sum(unit.parameters for unit in self.units)
        stored = sum(self.calibration.weight(unit, formats[unit.path]).stored_bits() for unit in self.units)
        mean = sum(formats[unit.path].weight_bits * unit.parameters for unit in self.units) / weights
        return {
            "nats": round(-self.figure(fake, formats), 4), "average": round(mean, 4),
            "stored_bits": round(stored / weights, 3), "cpu_seconds": round(self.calibrated + rounded, 1), **more,
        }  # fmt: skip


class Search:
    """Shapley values of widths of layers, by one seed, for all budgets, and the search near each."""

    def __init__(self, subject: Subject, seed: int, rounding: str) -> None:
        start = time.process_time()
        self.bench = bench = Decoder(subject, seed, rounding)
        groups = find_groups(bench.traced, bench.units)
        self.space = Space(
            groups,
            {group.name: tuple(bench.blocks_of(group.units[0], each) for each in OFFERED) for group in groups},
            FP32,
        )
        bench.calibration.prepare(
            bench.units, {unit.path: self.space.formats[group.name] for group in groups for unit in group.units}, int
        )
        self.bits = cost_models(self.space, bench.traced)["avg_bits"]
        self.value, self.unseen = (
            Evaluator(PolicyValue(bench.fake(), self.space, bench.task, batches))
            for batches in (bench.batches[:JUDGED], bench.batches[JUDGED : JUDGED + UNSEEN])
        )
        near = min(BUDGETS) * 0.95, max(BUDGETS) * 1.15
        self.scores = estimate(self.value, self.space, ScoringLimits(EFFORT.scoring), seed, near)
        self.spent = time.process_time() - start

    def row(self, bits: float) -> dict:
        """Return the row of one budget; the seconds that all of them share are in each."""
        start, before = time.process_time(), self.value.evaluations
        starts = {"shapley": self.scores.values(), "one at a time": self.scores.alone()}
        choice = choose(self.value, self.space, starts, [Ceiling(self.bits, bits)], EFFORT)
        choice = confirm(choice, self.value, self.unseen)
        formats = choice.policy.by_unit(self.space.groups)
        searched = time.process_time() - start
        return self.bench.row(
            formats,
            kl=round(-self.value(choice.policy), 4),
            kl_unseen=round(-self.unseen(choice.policy), 4),
            cpu_seconds=round(self.spent + searched, 1),
            evaluations=self.scores.evaluations + self.value.evaluations - before,
            policy={path: str(chosen) for path, chosen in formats.items()},
        )


def uniform(rounding: str, family: str, widths: str = "error") -> Row:
    """All layers with the same number type."""

    def row(subject: Subject, bits: float, seed: int, _: list[dict]) -> dict:
        bench = Decoder(subject, seed, rounding, widths)
        return bench.row(bench.blocks(f"{family}{bits:g}"))

    return row


def channels(subject: Subject, bits: float, seed: int, _: list[dict]) -> dict:
    """All layers with tables of the same average; `channels_missed` is by how many bits of one channel the layer that
    misses it most does.
    """
    bench = Decoder(subject, seed, "nearest")
    formats = {unit.path: Format.from_text(f"wc{bits:g}a16") for unit in bench.units}
    row = bench.row(formats)
    tables = [bench.calibration.weight(unit, formats[unit.path]) for unit in bench.units]
    missed = max(abs(sum(each.widths) - bits * len(each.widths)) for each in tables if isinstance(each, TableWeight))
    return {**row, "channels_missed": missed}


def searched(rounding: str) -> Row:
    """Layers with the widths that a search finds."""
    search = cache(lambda subject, seed: Search(subject, seed, rounding))
    return lambda subject, bits, seed, _: search(subject, seed).row(bits)


def reconstructed(method: str, rounding: str) -> Row:
    """The policies of another method, which the record holds, reconstructed block by block; its seconds are counted."""

    def row(subject: Subject, bits: float, seed: int, rows: list[dict]) -> dict:
        known = next(row for row in rows if (row["method"], row["bits"], row["seed"]) == (method, bits, seed))
        bench = Decoder(subject, seed, rounding)
        policy = known.get("policy") or {path: str(each) for path, each in bench.blocks(f"z{bits:g}").items()}
        formats = {path: Format.from_text(text) for path, text in policy.items()}
        found = bench.reconstructed(formats, replace(RECONSTRUCTION, seed=seed), -1)
        return {
            "nats": round(found["top1"], 4), "average": known["average"], "stored_bits": known["stored_bits"],
            "cpu_seconds": round(known["cpu_seconds"] + found["cpu_seconds"], 1), "nats_before": known["nats"],
            "kl": round(found["kl"], 4), "iterations": RECONSTRUCTION.iterations,
        }  # fmt: skip

    return row


METHODS: dict[str, Row] = {
    "nearest": uniform("nearest", "z"),
    "gptq": uniform("gptq", "z"),
    "descent": uniform("descent", "z"),
    "gptq, ranges of slim-llm": uniform("slim", "z"),
    "slim-llm": uniform("slim", "m", "slim"),
    "slim-llm, gptq with clip search": uniform("gptq", "m", "slim"),
    "mg-ptq": uniform("gptq", "m", "graph"),
    "cmpq": channels,
    "shapley, descent": searched("descent"),
    "shapley, descent, reconstructed": reconstructed("shapley, descent", "descent"),
    "descent, reconstructed": reconstructed("descent", "descent"),
}


def summary(rows: list[dict]) -> dict[str, dict[str, dict]]:
    """Return by method and bits the mean and the spread over seeds."""
    found: dict = {}
    for row in rows:
        found.setdefault(row["method"], {}).setdefault(f"{row['bits']:g}", []).append(row)
    return {
        method: {
            bits: {
                "nats": round(statistics.fmean(row["nats"] for row in alike), 4),
                "lowest": min(row["nats"] for row in alike),
                "highest": max(row["nats"] for row in alike),
                "stored_bits": round(statistics.fmean(row["stored_bits"] for row in alike), 3),
                "cpu_seconds": round(statistics.fmean(row["cpu_seconds"] for row in alike), 1),
                "seeds": sorted(row["seed"] for row in alike),
            }
            for bits, alike in table.items()
        }
        for method, table in found.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", choices=MODELS, default=next(iter(MODELS)))
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--methods", default=";".join(METHODS), help="with semicolons between")
    parser.add_argument("--bits", default="4,3,2")
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    subject = Subject(MODELS[options.model], options.data, options.weights)
    name = subject.model.record
    file = RESULTS / f"{name}.json"
    record = json.loads(file.read_text()) if file.is_file() else {"rows": []}
    rows = record["rows"]
    float_nats = record.get("float_nats") or round(-Decoder(subject, 0, "nearest").figure(), 4)
    columns = (
        options.methods.split(";"),
        [*map(float, options.bits.split(","))],
        [*map(int, options.seeds.split(","))],
    )
    for method, seed, bits in itertools.product(columns[0], columns[2], columns[1]):
        settings = {"method": method, "bits": bits, "seed": seed}
        if any(settings.items() <= row.items() for row in rows):
            continue
        rows.append({**settings, **METHODS[method](subject, bits, seed, rows)})
        given = f"TEXT --model {options.model} --weights WEIGHTS" if options.weights else "DATA_DIR"
        command = f"PYTHONPATH=.:benchmarks python benchmarks/language.py {given}"
        seeds = sorted({row["seed"] for row in rows})
        keep(name, command, seeds, rows, float_nats=float_nats, summary=summary(rows), threads=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
