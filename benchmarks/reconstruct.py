"""Reconstruction of ResNet-20 on CIFAR-10: top-1 on the test images before and after, by loss, start and iterations.

Usage: reconstruct.py CIFAR10_DIR WEIGHTS [--formats w2a8,2.25] [--losses mse,brecq,fima-q] [--iterations 300]
       [--starts calibrated] [--seeds 0] [--drops 0.5]

All layers have the same format, but the image stays at 8 bits. A number is a budget on average bits: the policy is the
one that the search found for it with the same seed (`ptq_resnet20_gptq.json`). Weights are rounded by GPTQ first. 1,024
calibration images, no labels; the test images are used for the two figures of a row and for nothing else. `share` says
how `drop` goes on: falling, as in the product, or constant, as before. Rows that the record holds are kept.
"""

import argparse
import itertools
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from reconstruction import Bench
from records import RESULTS, keep

from calib.formats.format import Format
from calib.tasks import load_task
from smpq.reconstruction.settings import ReconstructionSettings

NAME = "reconstruct"


class Resnet20(Bench):
    """The network, calibrated, and the policies that the search found for it."""

    def __init__(self, data: Path, weights: Path) -> None:
        super().__init__(load_task("cifar10-resnet20", data, weights))

    def formats(self, text: str, seed: int) -> dict[str, Format]:
        """Return the format of each layer: one of all, or those that the search found for a budget."""
        if text.replace(".", "").isdigit():
            return {path: Format.from_text(chosen) for path, chosen in found_policy(float(text), seed).items()}
        return self.uniform(text, image_bits=8)

    def row(self, text: str, settings: ReconstructionSettings) -> dict:
        """Reconstruct the network."""
        formats = self.formats(text, settings.seed)
        return {"format": text, "top1_before": self.percent(formats), **self.reconstructed(formats, settings)}


def found_policy(budget: float, seed: int) -> dict[str, str]:
    """Return the policy of the search for a budget on average bits, format by layer."""
    rows = json.loads((RESULTS / "ptq_resnet20_gptq.json").read_text())["rows"]
    asked = (budget, seed, "smpq normal")
    return next(row["policy"] for row in rows if (row["budget"], row["seed"], row["method"]) == asked)


def curves(rows: list[dict]) -> dict[str, dict[str, list[list[float]]]]:
    """Return by format, and by loss and start, what each row of the first seed took: [CPU seconds, top-1]."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for row in sorted(rows, key=lambda row: row["cpu_seconds"]):
        settings = row["settings"]
        if settings["seed"] == 0:
            name = "{loss} from {start}, drop {drop}, {share}".format(**settings, share=row["share"])
            curve = found.setdefault(row["format"], {}).setdefault(name, [])
            curve.append([row["cpu_seconds"], row["top1"]])
    return found


def over_seeds(rows: list[dict]) -> list[dict]:
    """Return the lowest and the mean accuracy of rows that differ in their seed alone."""
    found: dict[tuple, list[dict]] = {}
    for row in rows:
        settings = {name: value for name, value in row["settings"].items() if name != "seed"}
        found.setdefault((row["format"], row["share"], *settings.values()), []).append(row)
    return [
        {
            "format": alike[0]["format"],
            "share": alike[0]["share"],
            **{name: alike[0]["settings"][name] for name in ("loss", "iterations", "start", "drop")},
            "seeds": sorted(row["settings"]["seed"] for row in alike),
            "lowest": min(row["top1"] for row in alike),
            "mean": round(sum(row["top1"] for row in alike) / len(alike), 2),
            "most_cpu_seconds": max(row["cpu_seconds"] for row in alike),
        }
        for alike in found.values()
        if len(alike) > 1
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    for name, default in (
        ("formats", "w2a8"), ("losses", "mse,brecq,fima-q"), ("iterations", "300"), ("starts", "calibrated"),
        ("seeds", "0"), ("drops", "0.5"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = RESULTS / f"{NAME}.json"
    rows = json.loads(file.read_text())["rows"] if file.is_file() else []
    for row in rows:  # those made before there was a setting
        row["settings"] = {**asdict(ReconstructionSettings()), **row["settings"]}
        row.setdefault("share", "constant")
    bench = Resnet20(options.data, options.weights)
    columns = [
        getattr(options, name).split(",") for name in ("formats", "losses", "iterations", "starts", "seeds", "drops")
    ]
    for text, loss, iterations, start, seed, drop in itertools.product(*columns):
        settings = ReconstructionSettings(loss, int(iterations), start=start, seed=int(seed), drop=float(drop))
        wanted = {"format": text, "settings": asdict(settings), "share": "falling"}
        if any(wanted.items() <= row.items() for row in rows):
            continue
        rows.append({**bench.row(text, settings), "share": "falling"})
        command = "PYTHONPATH=. python benchmarks/reconstruct.py CIFAR10_DIR WEIGHTS"
        seeds = sorted({row["settings"]["seed"] for row in rows})
        keep(NAME, command, seeds, rows, float_top1=88.5, curves=curves(rows), over_seeds=over_seeds(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
