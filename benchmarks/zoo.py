"""Networks that nobody here wrote: each becomes an 8-bit engine that computes what the fake-quantised model does.

Usage: zoo.py [NAME ...] [--packages] [--keep FILE] [--first NAME,NAME] [--seconds N]

Architectures of `transformers` and plain PyTorch ones (`zoo_networks`), small, with random weights. Each runs in a
process of its own: a crash ends one line. A line tells which units were found and which weights were skipped and why,
how it ended, the cosines between the outputs of fake-quantised model, ONNX file and engine, the time of the engine by
that of the float engine, how many kernels of a plan for SM89 are as planned, and CPU seconds by stage.
Outcomes are kept in FILE (`runs/zoo.jsonl`), and networks that are there are not run again; with NAMEs only those run,
nothing is kept, and tracebacks are printed. With `--seconds` no further network begins after so long; the record names
those that have not run, as `not_run_yet`. `--first` names networks that run before the others. Needs the extra `bench`.

With `--packages` the networks are those of other packages, as many as are installed (`zoo_networks.packages`), on two
small batches each, and the record is `zoo_packages.json`.
"""

import argparse
import json
import math
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from records import keep
from rich.console import Console
from zoo_checks import (
    EIGHT_BITS,
    SM,
    WORST_COSINE,
    cosines,
    eight_bits,
    first_output,
    plan_for_sm89,
    ratio_to_float,
    unnamed,
)
from zoo_networks import NETWORKS, OF_PACKAGES
from zoo_networks.network import Network

from calib.errors import UserError
from calib.tasks import IN_MEMORY, held_in_memory
from deploy.python.task import TaskInMemory
from deploy.run.settings import Settings
from deploy.stages.making import build, export, verify
from deploy.stages.run_all import open_run
from deploy.terminal.progress import Progress

BATCH, CALIBRATION, EVALUATION = 8, 4, 2
SMALL_BATCH, FEW = 3, 2
ALL = {**NETWORKS, **OF_PACKAGES}
LONGEST_SECONDS = 600
BARS = {"networks": 45, "engines": 43, "median_cosine": 0.9999, "worst_cosine": WORST_COSINE}


class Stages:
    """CPU seconds of each stage; the last one that began is where a failure happened."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.now = "make"

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.now, start = name, time.process_time()
        yield
        self.seconds[name] = round(time.process_time() - start, 2)


def taken(network: Network) -> dict[str, Any]:
    """Return the line of a network."""
    stages = Stages()
    row: dict[str, Any] = {"network": network.name, "field": network.field}
    try:
        with tempfile.TemporaryDirectory() as scratch:
            _take(network, Path(scratch), stages, row)
        ended = "engine"
    except UserError as error:
        ended = f"refused at {stages.now}: {error}"
    except Exception as error:  # noqa: BLE001 - any other exception is what the zoo looks for
        frames = traceback.extract_tb(error.__traceback__)[-5:]
        where = " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
        ended = f"traceback at {stages.now}: {type(error).__name__}: {str(error)[:400]} ({where})"
        row["traceback"] = traceback.format_exc()
    return {**row, "ended": ended, "cpu_seconds": stages.seconds}


def _take(network: Network, scratch: Path, stages: Stages, row: dict[str, Any]) -> None:
    with stages("make"):
        module = network.module()
        row["parameters"] = sum(parameter.numel() for parameter in module.parameters())
        size, calibration, evaluation = (
            (BATCH, CALIBRATION, EVALUATION) if network.name in NETWORKS else (SMALL_BATCH, FEW, 1)
        )
        batches = [(*network.inputs(size), torch.zeros(size)) for _ in range(calibration + evaluation)]
        task = TaskInMemory(IN_MEMORY, module, batches[:calibration], batches[calibration:], first_output)
    settings = Settings(task=IN_MEMORY, formats=f"{EIGHT_BITS},fp32", value="loss", samples=size)
    progress = Progress(Console(file=sys.stderr, quiet=True))
    with held_in_memory(task):
        with stages("trace"):
            workspace = open_run(scratch / "run", progress, settings)
        with workspace:
            row["free_batch"] = workspace.traced.dynamic_batch
            row["units"] = len(workspace.space.units)
            row["skipped"] = {entry.path: f"{entry.operator}: {entry.reason}" for entry in workspace.skipped}
            row["weights_without_a_word"] = unnamed(workspace, module)
            policy = eight_bits(workspace.space)
            row["refused_formats"] = {
                key: reason
                for key, reason in workspace.refused.items()
                if policy.formats[key.partition(": ")[0]].is_float
            }
            chosen = policy.by_unit(workspace.space.groups).values()
            row["formats"] = {str(each): list(chosen).count(each) for each in dict.fromkeys(chosen)}
            with stages("calibrate"):
                _ = workspace.fake_quantizer
            with stages("export"):
                export(workspace, policy)
            with stages("engine"):
                row["layers_as_planned"] = [row.agrees for row in build(workspace, policy).kernels.values()].count(True)
            with stages("compare"):
                row.update(cosines(workspace, policy, scratch))
            with stages("verify"):
                verify(workspace, policy)
            with stages("measure"):
                row.update(ratio_to_float(workspace, policy))
            with stages("sm89"):
                row[SM] = plan_for_sm89(workspace, scratch)


def alone(network: Network) -> dict[str, Any]:
    """Return the line of a network, taken in a process of its own."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(network, theirs))
    process.start()
    theirs.close()
    try:
        row = ours.recv() if ours.poll(LONGEST_SECONDS) else {"ended": f"traceback: not done in {LONGEST_SECONDS} s"}
    except EOFError:
        process.join()
        row = {"ended": f"traceback: the process ended with {process.exitcode}"}
    if process.is_alive():
        process.join(5)
        process.kill()
    return {"network": network.name, "field": network.field, **row}


def _send(network: Network, pipe: Connection) -> None:
    torch.set_num_threads(1)
    pipe.send(taken(network))


def told(row: dict[str, Any]) -> str:
    parts = [f"{row['network']:20s}", f"{row.get('units', 0):3d} units", f"{len(row.get('skipped', {})):2d} skipped"]
    if "engine_and_fake_quant" in row:
        parts += [
            f"{name[:14]} {row[name]:.6f}"
            for name in ("engine_and_fake_quant", "onnx_and_fake_quant", "fake_quant_and_float")
        ]
        parts += [f"spread {row['spread']:.2f}"]
        parts += [f"ratio {row.get('latency_ratio')}", f"{SM} {row.get(SM, {}).get('as_planned')} of {row['units']}"]
    seconds = " ".join(f"{name} {value:.1f}" for name, value in row.get("cpu_seconds", {}).items())
    unnamed_ = f" UNNAMED {row['weights_without_a_word']}" if row.get("weights_without_a_word") else ""
    return f"{', '.join(parts)} [{seconds}] {row['ended'][:300]}{unnamed_}"


def warm() -> None:
    """Import what every network needs, once for all processes, and let torch make its tables."""
    network = NETWORKS["vit"]
    module = network.module()
    program = torch.export.export(module, network.inputs(2)).run_decompositions({})
    torch.onnx.export(program, dynamo=True, verbose=False)


def complete(path: Path, names: Sequence[str], seconds: float = math.inf) -> dict[str, dict[str, Any]]:
    """Run what the file does not have, in this order, and return all outcomes by name; begin none after the time."""
    end = time.monotonic() + seconds
    rows = {row["network"]: row for row in map(json.loads, path.read_text().splitlines())} if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for name in names:
            if name not in rows and time.monotonic() < end:
                rows[name] = alone(ALL[name])
                file.write(json.dumps(rows[name]) + "\n")
                file.flush()
                print(told(rows[name]), file=sys.stderr, flush=True)
    return rows


def ordered(first: Sequence[str], names: Iterable[str]) -> list[str]:
    """Return all names, the first before the others."""
    if unknown := [name for name in first if name not in ALL]:
        raise SystemExit(f"no network is called {', '.join(unknown)}")
    return list(dict.fromkeys([*first, *names]))


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the rows come to."""
    ends = [row["ended"].split()[0].rstrip(":") for row in rows]
    engines = [row for row in rows if row["ended"] == "engine"]
    cosines_ = [row["engine_and_fake_quant"] for row in engines]
    plans = [row[SM] for row in engines if "as_planned" in row[SM]]
    return {
        "networks": len(rows),
        "engines": ends.count("engine"),
        "refused": ends.count("refused"),
        "tracebacks": ends.count("traceback"),
        "median_cosine": round(median(cosines_), 7),
        "worst_cosine": min(cosines_),
        "below_the_worst_cosine": {
            row["network"]: {
                key: row.get(key) for key in ("engine_and_fake_quant", "shaken", "resummed", "fake_quant_and_float")
            }
            for row in engines
            if row["engine_and_fake_quant"] < WORST_COSINE
        },
        "weights_without_a_word": sum(len(row.get("weights_without_a_word", ())) for row in rows),
        "median_latency_ratio": round(median(row["latency_ratio"] for row in engines), 3),
        SM: {
            "plans": len(plans),
            "no_plan": {row["network"]: row[SM] for row in engines if "as_planned" not in row[SM]},
            "units_as_planned": sum(plan["as_planned"] for plan in plans),
            "of": sum(plan["of"] for plan in plans),
            "quantised": sum(plan["quantised"] for plan in plans),
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*ALL, []])
    parser.add_argument("--packages", action="store_true")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--first", default="")
    parser.add_argument("--seconds", type=float, default=math.inf)
    options = parser.parse_args()
    record, wanted = ("zoo_packages", OF_PACKAGES) if options.packages else ("zoo", NETWORKS)
    names = ordered([each for each in options.first.split(",") if each], wanted)
    torch.set_num_threads(1)
    warm()
    if options.names:
        for name in options.names:
            row = alone(ALL[name])
            print(json.dumps({key: value for key, value in row.items() if key != "traceback"}, indent=1))
            print(row.get("traceback", ""))
        return 0
    known = complete(options.keep or Path(f"runs/{record}.jsonl"), names, options.seconds)
    rows, left = [known[name] for name in wanted if name in known], [name for name in wanted if name not in known]
    found = summary(rows)
    command = "PYTHONPATH=. python benchmarks/zoo.py" + " --packages" * options.packages
    keep(record, command, [0], rows, bars=BARS, summary=found, not_run_yet=left)
    return 0 if found["tracebacks"] == 0 and all(found[name] >= bar for name, bar in BARS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
