"""Reconstruction of networks other than ResNet-20: vision transformers, a denoiser, a detector.

Usage: reconstruct_networks.py NETWORK [--formats w4a4,w3a3] [--methods nearest,gptq,mse,brecq,fima-q] [--seeds 0,1,2]
       [--iterations 300] [--channel-scales] [--attention] [--data DIRECTORY] [--weights FILE]

NETWORK is a row of NETWORKS. All layers have the same format; the first layer of a vision transformer reads the image
at 8 bits. `nearest` and `gptq` round without reconstruction, and no seed changes them. The other methods are losses of
`smpq reconstruct`, which begin at GPTQ's integers. The calibration data are those of the task, without labels. The
evaluation data are used for the figures of a row and for nothing else. Rows that the record holds are kept.
`--attention` quantises the products of attention too, as the layer that reads their result.
"""

import argparse
import itertools
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from reconstruction import Bench
from records import RESULTS, cpu_model, keep

from calib.tasks import load_task
from smpq.reconstruction.settings import ReconstructionSettings

NAME = "reconstruct_networks"
ROUNDINGS = ("nearest", "gptq")
_COLUMNS = ("network", "format", "method", "attention", "share", "iterations", "channel_scales", "drop")


class Network(NamedTuple):
    """A task, what its figure is multiplied by, the bits of the first layer's input where they differ from the
    format's, and what of the settings differs from the defaults.
    """

    task: str
    scale: float
    image_bits: int | None
    settings: dict[str, Any]


NETWORKS = {
    "digits-vit": Network("digits-vit", 100, 8, {"samples": 512}),
    "cifar10-vit": Network("cifar10-vit", 100, 8, {}),
    "dncnn": Network("examples.denoising:task", 1, None, {"samples": 32, "batch": 2}),
    "fastestdet": Network("examples.detection:task", 1, None, {"samples": 64, "batch": 8}),
}


def row(name: str, bench: Bench, text: str, method: str, changed: dict[str, Any]) -> dict[str, Any]:
    """Round or reconstruct a network, and return what came of it."""
    network = NETWORKS[name]
    formats = bench.uniform(text, network.image_bits)
    found = {"network": name, "format": text, "method": method, "attention": bool(bench.attention)}
    bench.calibrate(method if method in ROUNDINGS else "gptq")
    if method in ROUNDINGS:
        return {**found, "figure": round(network.scale * bench.figure(bench.fake(), formats), 3), "cpu": cpu_model()}
    settings = settings_of(name, method, changed)
    made = bench.reconstructed(formats, settings, network.scale)
    return {**found, "share": "falling", "figure": made.pop("top1"), **made}


def settings_of(name: str, method: str, changed: dict[str, Any]) -> ReconstructionSettings:
    """Return how a network is reconstructed."""
    return ReconstructionSettings(method, **NETWORKS[name].settings, **changed)


def over_seeds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lowest, the mean and the highest figure of the rows that differ in their seed alone."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for each in rows:
        settings = each.get("settings", {})
        how = (each["attention"], each.get("share"), *map(settings.get, ("iterations", "channel_scales", "drop")))
        found.setdefault((each["network"], each["format"], each["method"], *how), []).append(each)
    return [
        {
            **dict(zip(_COLUMNS, key, strict=True)),
            "rows": len(alike),
            "lowest": min(each["figure"] for each in alike),
            "mean": round(sum(each["figure"] for each in alike) / len(alike), 3),
            "highest": max(each["figure"] for each in alike),
        }
        for key, alike in found.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=NETWORKS)
    for name, default in (
        ("formats", "w4a4,w3a3"), ("methods", "nearest,gptq,mse,brecq,fima-q"), ("seeds", "0,1,2"),
        ("iterations", "300"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--channel-scales", action="store_true")
    parser.add_argument("--attention", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = RESULTS / f"{NAME}.json"
    kept = json.loads(file.read_text()) if file.is_file() else {"rows": [], "float": {}}
    rows, floats = kept["rows"], kept["float"]
    for each in rows:  # those made before there was a setting
        each.setdefault("attention", False)
        if "settings" in each:
            each["settings"] = {**asdict(ReconstructionSettings()), **each["settings"]}
            each.setdefault("share", "constant")
    network = NETWORKS[options.network]
    bench = Bench(load_task(network.task, options.data, options.weights), attention=options.attention)
    floats[options.network] = round(network.scale * bench.figure(), 3)
    columns = [getattr(options, name).split(",") for name in ("iterations", "seeds", "formats", "methods")]
    for iterations, seed, text, method in itertools.product(*columns):
        changed = {"iterations": int(iterations), "seed": int(seed), "channel_scales": options.channel_scales}
        wanted: dict[str, Any] = {
            "network": options.network,
            "format": text,
            "method": method,
            "attention": options.attention,
        }
        if method not in ROUNDINGS:
            wanted |= {"settings": asdict(settings_of(options.network, method, changed)), "share": "falling"}
        if any(wanted.items() <= each.items() for each in rows):
            continue
        rows.append(row(options.network, bench, text, method, changed))
        seeds = sorted({each["settings"]["seed"] for each in rows if "settings" in each})
        keep(NAME, f"python benchmarks/{NAME}.py NETWORK", seeds, rows, float=floats, over_seeds=over_seeds(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
