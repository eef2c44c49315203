"""A small language model whose weights are rounded to few bits: nats per token by method, average bits and seed.

Usage: language.py DATA_DIR [--methods nearest,gptq] [--bits 4,3,2] [--seeds 0,1,2]

DATA_DIR holds `stories260k.safetensors`, `tok512.json` and `tinystories.txt` (`examples/language.py`). All 35 linear
layers have blocks with zero points, of 32 inputs, and of 43 where 32 does not divide them (172 inputs); the embedding,
which is the head too, stays in float. A seed draws the 32 calibration rows from the stories behind the 120 that are
measured; seed 0 takes the first ones. `bits` are those of the values on average, `stored_bits` count scales and zero
points too. `cpu_seconds` are those of this process for all but the measurement: calibration, rounding and search. Rows
that the record holds, by the same settings, are kept.
"""

import argparse
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from reconstruction import Bench
from records import RESULTS, keep

from calib.formats.format import FP32, Format
from examples.language import STORIES, Language
from smpq.problem.costs import weight_bytes

NAME = "language"
BLOCKS = (32, 43)


class Seeded(Language):
    """The task with other calibration data for each seed."""

    def __init__(self, data: Path, seed: int) -> None:
        super().__init__(data, data / "stories260k.safetensors")
        if seed:
            behind = self._stories[STORIES:]
            random.Random(seed).shuffle(behind)
            self._stories[STORIES:] = behind


class Stories(Bench):
    """The network, calibrated with one seed and rounded one way."""

    def __init__(self, data: Path, seed: int, rounding: str) -> None:
        start = time.process_time()
        super().__init__(Seeded(data, seed), rounding)
        self.seed = seed
        self.calibrated = time.process_time() - start

    def blocks(self, weight: str) -> dict[str, Format]:
        """Return the format of each layer, given the number type of the weights."""
        formats = {}
        for unit in self.units:
            block = next(size for size in BLOCKS if unit.in_features % size == 0) if not unit.gathers else None
            formats[unit.path] = FP32 if block is None else Format.from_text(f"w{weight}a16b{block}")
        return formats

    def row(self, formats: dict[str, Format], **more: object) -> dict:
        """Round and measure a policy."""
        start = time.process_time()
        fake = self.fake()
        fake.plan(formats)
        rounded = time.process_time() - start
        layers = [unit for unit in self.units if not formats[unit.path].is_float]
        weights = sum(unit.parameters for unit in layers)
        stored = sum(weight_bytes(unit, formats[unit.path]) for unit in layers)
        mean = sum(formats[unit.path].weight_bits * unit.parameters for unit in layers) / weights
        return {
            "nats": round(-self.figure(fake, formats), 4), "average": round(mean, 4),
            "stored_bits": round(8 * stored / weights, 3), "cpu_seconds": round(self.calibrated + rounded, 1), **more,
        }  # fmt: skip


def uniform(rounding: str) -> Callable[[Path, float, int], dict]:
    """All layers with the same width."""

    def row(data: Path, bits: float, seed: int) -> dict:
        bench = Stories(data, seed, rounding)
        return bench.row(bench.blocks(f"z{bits:g}"))

    return row


METHODS: dict[str, Callable[[Path, float, int], dict]] = {"nearest": uniform("nearest"), "gptq": uniform("gptq")}


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
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--bits", default="4,3,2")
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = RESULTS / f"{NAME}.json"
    record = json.loads(file.read_text()) if file.is_file() else {"rows": []}
    rows = record["rows"]
    float_nats = record.get("float_nats") or round(-Stories(options.data, 0, "nearest").figure(), 4)
    columns = (options.methods.split(","), map(float, options.bits.split(",")), map(int, options.seeds.split(",")))
    for method, bits, seed in itertools.product(*columns):
        settings = {"method": method, "bits": bits, "seed": seed}
        if any(settings.items() <= row.items() for row in rows):
            continue
        rows.append({**settings, **METHODS[method](options.data, bits, seed)})
        command = "PYTHONPATH=.:benchmarks python benchmarks/language.py DATA_DIR"
        seeds = sorted({row["seed"] for row in rows})
        keep(NAME, command, seeds, rows, float_nats=float_nats, summary=summary(rows), threads=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
