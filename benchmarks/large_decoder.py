"""Memory and time of the whole job on a decoder of 80 million parameters with random weights.

Usage: large_decoder.py [--formats w4a16b128,w8a16b128,fp32] [--samples 8]

The blocks of `examples/llama.py`, ten of them of width 768, on random tokens in rows of 128: `smpq run --effort fast`
with `size=0.2x` for `ort-cpu`, on one thread. `steps` are the seconds that it prints. `peak_gb` is the largest resident
set of any process (`ru_maxrss`), `cpu_seconds` and `seconds` are those of the processor and of the clock. The bar: 8 GB
and 10 minutes up to the engines; what follows, the measurement and the verification, is counted here too. Random
weights predict nothing, so that the loss says nothing either.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from records import keep

from calib.tasks.language import LanguageTask
from examples.llama import Llama, Sizes

SIZES = Sizes(vocabulary=12_000, width=768, hidden=2048, depth=10, heads=12, key_heads=12, context=128)
ROWS, DOCUMENT, BATCH = 16, 2_049, 4
BARS = {"peak_gb": 8, "seconds": 600}
HERE = Path(__file__).parent


def network() -> Llama:
    """Return the decoder with the weights of a seed."""
    torch.manual_seed(0)
    model = Llama(SIZES)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval().requires_grad_(False)


def documents(seed: int) -> list[list[int]]:
    """Return a document of random tokens."""
    return [torch.randint(SIZES.vocabulary, (DOCUMENT,), generator=torch.Generator().manual_seed(seed)).tolist()]


def task(_data: Path | None, _weights: Path | None) -> LanguageTask:
    """Make the task; name it `large_decoder:task`."""
    return LanguageTask(
        "large-decoder", network, lambda: documents(1), lambda: documents(2), SIZES.context, rows=ROWS, batch=BATCH
    )


def job(run: Path, formats: str, samples: int) -> list[str]:
    """Return the command."""
    what = ["run", "--task", "large_decoder:task", "--target", "ort-cpu", "--budget", "size=0.2x", "--out", str(run)]
    return [*what, "--formats", formats, "--samples", str(samples), "--effort", "fast", "--workers", "1"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="w4a16b128,w8a16b128,fp32")
    parser.add_argument("--samples", type=int, default=8)
    options = parser.parse_args()
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        command = [sys.executable, "-m", "cli", *job(Path(directory) / "run", options.formats, options.samples)]
        process = subprocess.Popen(command, env=environment, cwd=HERE.parent, stderr=subprocess.PIPE, text=True)
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)  # of this process and its own children
        seconds = time.perf_counter() - start
    if status:
        print(said, file=sys.stderr)
        return 1
    row = {
        "steps": {name: float(took) for name, took in re.findall(r"^([a-z].*): ([0-9.]+) s$", said, re.MULTILINE)},
        "peak_gb": round(usage.ru_maxrss / 2**20, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "seconds": round(seconds, 1),
    }
    parameters = sum(each.numel() for each in network().parameters())
    command = f"PYTHONPATH=.:benchmarks python benchmarks/large_decoder.py --formats {options.formats}"
    keep(
        "large_decoder", command, [0], [row], bars=BARS, parameters=parameters, formats=options.formats, threads=1,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
