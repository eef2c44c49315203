"""KAQ on an unfolded MIMO detector: the SNR that a bit error rate of 1e-3 takes at 4 bits, and that of engines.

Usage: mimo.py DIRECTORY [--rows plain,following,kaq] [--epochs N] [--channels N] [--no-engines]

8 x 8 antennas, QPSK (`examples/mimo.py`). The float network is trained once, and kept in DIRECTORY with everything
that is unfinished. Each row is trained from it with weights and activations of 4 or 3 bits in all 20 layers, in the
same loop, with as many epochs, on the same data: `plain` has learned steps alone, `following` has gains that follow
the channel besides, and `kaq` also aligns distributions. All rows see the same channels, symbols and noise. Intervals
are of 95 %, by a bootstrap over 128 blocks of channels, the same blocks for both rows of a difference.

Engines: `smpq run` with `--method kaq` and half an epoch; its network in PyTorch and its engine see the same
channels, a quarter of them. There is no kernel for activations of 4 bits on a CPU: the `simulate` target runs that
graph in ONNX Runtime, rounded in float, and `ort-cpu` runs integers of 8 bits.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import Parts, keep
from safetensors.torch import load_file, save_file
from train_mimo import trained
from training import Kept, Watching, problem_of, say

from calib.calibrate import Calibration, CalibrationSettings
from calib.formats.format import FP32, formats_from_text
from calib.network.fold import trace_folded
from calib.network.units import find_units
from calib.task import Batch
from deploy.stages.policies import read_policy
from deploy.stages.run_all import open_run
from deploy.stages.stage_runners import stage_runners
from deploy.terminal.progress import Progress
from examples.mimo import SETTINGS, Mimo, draw, follow, snr_at, wrong_bits
from examples.mimo_detector import Detector
from smpq.methods import METHODS, Solution
from smpq.problem.groups import find_groups
from smpq.quantized.plan import QdqRules
from smpq.quantized.quantize import FakeQuantizer
from smpq.training.bits.settings import KaqSettings
from smpq.training.settings import FineTuneSettings

ROOT = Path(__file__).parents[1]
SETTING = replace(SETTINGS["task"], snrs_db=(12.0, 13.0, 14.0, 15.0, 16.0, 17.0, 18.0))
ROWS = {
    "plain": ("w4a4", 1, 0.0),
    "following": ("w4a4", 8, 0.0),
    "kaq": ("w4a4", 8, 0.05),
    "plain-3": ("w3a3", 1, 0.0),
    "following-3": ("w3a3", 8, 0.0),
    "kaq-3": ("w3a3", 8, 0.05),
}
"""Formats, buckets of the channel that have a step of their own, and the weight of the alignment."""
EPOCHS, CHANNELS, BLOCKS, REPETITIONS, SIZE = 6.0, 65_536, 128, 2000, 1024
HOW = FineTuneSettings(epochs=EPOCHS)
BARS = {"from_float_db": 0.3, "better_than_plain_db": 0.2, "engine_db": 0.1}
ENGINES = (("simulate", "w4a4"), ("ort-cpu", "w8a8"))


class Bench:
    """The network, calibrated: `buckets` may be others than those of the weights, since all gains are 1."""

    def __init__(self, weights: Path, buckets: int) -> None:
        own = {name: tensor for name, tensor in load_file(weights).items() if "gains" not in name and name != "edges"}
        model = Detector(SETTING.values, buckets=buckets)
        model.load_state_dict(own, strict=False)
        self.model = follow(SETTING, model).eval()
        self.task = Mimo(SETTING, self.model)
        self.batches = self.task.calibration()
        example = tuple(tensor[:2] for tensor in self.batches[0].inputs)
        self.traced, self.folded = trace_folded(self.model, example)
        self.units, _ = find_units(self.traced)
        calibration = Calibration(self.traced, self.units, self.batches, CalibrationSettings())
        self.fake = FakeQuantizer(self.traced, self.units, calibration, QdqRules("affine"))


def counted(compute: Callable[[Batch], torch.Tensor], channels: int) -> np.ndarray:
    """Return the wrong bits `[SNRs, channels]` of what is computed of a batch."""
    found = []
    for place in range(len(SETTING.snrs_db)):
        seeds = (3_000_000 + 10_000 * place + index for index in range(channels // SIZE))
        batches = (draw(SETTING, SIZE, seed, place) for seed in seeds)
        found.append(torch.cat([wrong_bits(SETTING, compute(batch), batch.target)[0] for batch in batches]).numpy())
    return np.stack(found)


def wrong(fake: FakeQuantizer, policy: dict, channels: int) -> np.ndarray:
    """Return the wrong bits `[SNRs, channels]` of a policy."""
    edits = fake.edits(fake.plan(policy))
    return counted(lambda batch: fake.traced.run(batch.inputs, edits), channels)


def resampled(counts: np.ndarray) -> np.ndarray:
    """Return error rates `[1 + repetitions, SNRs]`: of all channels, then of blocks that were drawn again."""
    blocks = counts.reshape(len(counts), BLOCKS, -1).sum(2)
    numbers = np.random.default_rng(0)
    weights = numbers.multinomial(BLOCKS, np.full(BLOCKS, 1 / BLOCKS), (REPETITIONS, len(counts)))
    drawn = np.einsum("rsb,sb->rs", weights, blocks)
    bits = counts.shape[1] * 2 * SETTING.transmit
    return (np.vstack([blocks.sum(1), drawn]) + 0.5) / (bits + 1)


def figures(counts: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """Return the curve and its SNR, with intervals, and all resampled SNRs in dB."""
    rates = resampled(counts)
    snrs = np.array([snr_at(SETTING.snrs_db, row) for row in rates])
    low, high = np.quantile(rates[1:], (0.025, 0.975), axis=0)
    curve = [
        {"snr_db": snr, "ber": float(rates[0][i]), "interval": [float(low[i]), float(high[i])]}
        for i, snr in enumerate(SETTING.snrs_db)
    ]
    return {"snr_db_at_ber_1e-3": snrs[0], "interval_db": interval(snrs), "curve": curve}, snrs


def interval(values: np.ndarray) -> list[float]:
    return [round(float(end), 4) for end in np.quantile(values[1:], (0.025, 0.975))]


def difference(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    return {"db": round(float(one[0] - other[0]), 4), "interval_db": interval(one - other)}


def row(name: str, weights: Path, files: Kept, how: FineTuneSettings, channels: int) -> dict[str, Any]:
    """Train a row, or read it; returns what is known of it besides its errors."""
    record, counts = files.file("row.json"), files.file("wrong.npy")
    if record.is_file():
        return json.loads(record.read_text())
    text, buckets, alignment = ROWS[name]
    bench, own = Bench(weights, buckets), KaqSettings(alignment=alignment)
    began, watching = time.process_time(), Watching()
    groups = find_groups(bench.traced, bench.units)
    formats = {group.name: formats_from_text(text) for group in groups}
    problem = problem_of(bench, groups, formats, f"avg_bits={text[1]}", how, files, watching)  # type: ignore[arg-type]
    solution = METHODS["kaq"].function(problem, own)
    assert isinstance(solution, Solution)
    spent, tuned = time.process_time() - began, solution.weights
    fake = FakeQuantizer(
        tuned.traced(bench.traced), bench.units, tuned.calibration(bench.fake.calibration), QdqRules("affine")
    )
    np.save(counts, wrong(fake, solution.policy.by_unit(problem.space.groups), channels))
    found = {
        "name": name, "network": f"unfolded MIMO detector 8x8 QPSK, {how.epochs:g} epochs", "buckets": buckets,
        "alignment": alignment, "formats": text, "train_cpu_seconds": round(spent, 1),
        "cpu_seconds": round(time.process_time() - began, 1), "loss": tuned.history[-1]["loss"],
        "calibration_before": asdict(tuned.before), "calibration_after": asdict(tuned.after),
    }  # fmt: skip
    record.write_text(json.dumps(found))
    return found


def engine(target: str, formats: str, weights: Path, run: Path, channels: int) -> dict[str, Any]:
    """Let `smpq run` train and build in `run`, and compare the engine with the fake-quantised network in PyTorch."""
    began = resource.getrusage(resource.RUSAGE_CHILDREN), time.process_time()
    options = ["--task", "examples.mimo:task", "--weights", str(weights), "--target", target, "--formats", formats]
    options += ["--method", "kaq", "--budget", f"avg_bits={formats[1]}", "--finetune", "0.5", "--out", str(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "cli", "run", *options], cwd=ROOT, env=environment, check=False)
    workspace = open_run(run, Progress())
    with tempfile.TemporaryDirectory() as directory:
        runners = stage_runners(workspace, read_policy(workspace), Path(directory))
    stages = {}
    for name in ("fake_quant", "engine"):
        runner = runners[name]  # type: ignore[index]
        assert callable(runner), runner
        stages[name] = figures(counted(runner, channels))
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = ended.ru_utime + ended.ru_stime - began[0].ru_utime - began[0].ru_stime + time.process_time() - began[1]
    return {
        "target": target, "formats": formats, "channels": channels, "pytorch": stages["fake_quant"][0],
        "engine": stages["engine"][0], "from_pytorch": difference(stages["engine"][1], stages["fake_quant"][1]),
        "cpu_seconds": round(spent, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rows", default="plain,following,kaq", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--channels", type=int, default=CHANNELS, help="at each SNR, whole thousands of 1024")
    parser.add_argument("--no-engines", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    directory, channels = arguments.directory, arguments.channels
    weights, errors = directory / "float.safetensors", directory / f"float-{channels}.npz"
    if not weights.is_file():
        save_file(trained("task").state_dict(), weights)
    if not errors.is_file():
        bench = Bench(weights, 8)
        alone = wrong(bench.fake, dict.fromkeys((unit.path for unit in bench.units), FP32), channels)
        np.savez(errors, float=alone, mmse=counted(lambda batch: batch.inputs[2], channels))
    known = {
        name: dict(zip(("figures", "snrs"), figures(counts), strict=True)) for name, counts in np.load(errors).items()
    }
    say(f"float: {known['float']['figures']['snr_db_at_ber_1e-3']:.3f} dB")
    rows: list[dict[str, Any]] = []
    snrs = {"float": known["float"]["snrs"]}
    for name in arguments.rows.split(","):
        how, files = replace(HOW, epochs=arguments.epochs), Kept(directory / f"{name}-{arguments.epochs:g}-{channels}")
        found = row(name, weights, files, how, channels)
        own, snrs[name] = figures(np.load(files.file("wrong.npy")))
        found |= own | {"from_float": difference(snrs[name], snrs["float"])}
        plain = next((other for other, row in ROWS.items() if row == (ROWS[name][0], 1, 0.0)), name)
        if plain in snrs and name != plain:
            found["from_plain"] = difference(snrs[name], snrs[plain])
        rows.append(found)
        say(f"{name}: {found['snr_db_at_ber_1e-3']:.3f} dB, {found['from_float']}, {found.get('from_plain')}")
    parts = Parts(directory / "engines.json")
    for target, formats in ENGINES if not arguments.no_engines else ():
        run = directory / f"{target}-{formats}"
        parts(f"{target} {formats}", partial(engine, target, formats, weights.resolve(), run.resolve(), channels // 4))
    keep(
        "kaq", "OMP_NUM_THREADS=1 python benchmarks/mimo.py DIRECTORY", [0], rows, bars=BARS, channels=channels,
        float=known["float"]["figures"], mmse=known["mmse"]["figures"], engines=list(parts.all().values()),
        threads=torch.get_num_threads(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
