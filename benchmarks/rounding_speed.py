"""CPU seconds of GPTQ's rounding here and in another checkout, layer by layer, side by side.

Usage: rounding_speed.py --before CHECKOUT [--rounds N]

Random weights on correlated random inputs, in the sizes of ResNet-20's layers and of a decoder of width 768. The two
checkouts take turns, each in a process of its own on one thread; what counts is the least CPU time of a layer in any
round, and the ratio of these. `changed` is the share of integers that differ, as sums are taken in another order.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from records import keep
from safetensors.torch import load_file, save_file

LAYERS = (
    (16, 144, "w2a16"), (32, 288, "w3a16"), (64, 576, "w2a16"), (64, 576, "w8a16"), (768, 768, "w4a16b128"),
    (2048, 768, "w4a16b128"), (2048, 768, "wz3a16b128"), (768, 2048, "w4a16b128"),
)  # fmt: skip
HERE = Path(__file__).parent


def once(kept: Path) -> None:
    """Round every layer with the package that PYTHONPATH names; keep the integers, print the seconds as JSON."""
    from calib.formats.format import Format
    from calib.rounding.base import Moments
    from calib.rounding.gptq import round_gptq

    seconds, integers = {}, {}
    for rows, length, name in LAYERS:
        generator = torch.Generator().manual_seed(0)
        mixing = torch.eye(length) + 0.3 * torch.randn(length, length, generator=generator) / length**0.5
        inputs = (torch.randn(4 * length, length, generator=generator) @ mixing).relu()
        moments = Moments.of((inputs.T @ inputs / len(inputs))[None])
        moments.inverse_factor  # noqa: B018 - all widths share it: not what is compared
        weight = torch.randn(rows, length, generator=generator) * 0.05
        form = Format.from_text(name)
        start = time.thread_time()
        rounded = round_gptq(weight, moments, form.weight, form.weight_block, torch.zeros(rows))
        layer = f"{rows} x {length}, {name}"
        seconds[layer], integers[layer] = time.thread_time() - start, rounded.values.contiguous()
    save_file(integers, kept)
    print(json.dumps(seconds))


def in_checkout(checkout: Path, kept: Path) -> dict[str, float]:
    """Return the seconds of each layer, measured in another process."""
    environment = {**os.environ, "PYTHONPATH": f"{checkout}:{HERE}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--once", str(kept)]
    return json.loads(subprocess.run(command, env=environment, cwd=checkout, check=True, capture_output=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once is not None:
        once(options.once)
        return 0
    if options.before is None:
        parser.error("--before names the checkout to compare with")
    checkouts = {"before": options.before.resolve(), "here": HERE.parent.resolve()}
    times = {side: [] for side in checkouts}
    with tempfile.TemporaryDirectory() as directory:
        files = {side: Path(directory) / f"{side}.safetensors" for side in checkouts}
        for _ in range(options.rounds):
            for side, checkout in checkouts.items():
                times[side].append(in_checkout(checkout, files[side]))
        integers = {side: load_file(file) for side, file in files.items()}
    rows = []
    for name in times["here"][0]:
        before, here = (min(each[name] for each in times[side]) for side in checkouts)
        changed = (integers["before"][name] != integers["here"][name]).float().mean()
        rows.append({
            "layer": name, "cpu_seconds_before": round(before, 4), "cpu_seconds": round(here, 4),
            "ratio": round(here / before, 3), "changed": round(float(changed), 6),
        })  # fmt: skip
    command = f"python benchmarks/rounding_speed.py --before CHECKOUT --rounds {options.rounds}"
    keep("rounding_speed", command, [0], rows, threads=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
