"""Build and time every candidate of an experiment, each interleaved with the float engine; go on where an earlier run
ended.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.runner.bench import OPENERS, open_bench
from deploy.runner.causes import REFUSED
from deploy.runner.errors import DeviceError, MissingModule
from deploy.runner.experiment import (
    RESULTS_FILE,
    SCHEMA,
    locked,
    read_experiment,
    read_results_file,
    result_key,
)
from deploy.runner.product import write_product
from deploy.runner.protocol import GpuTimed
from deploy.runner.state import QUIET, jetson_release, machine, power_mode
from deploy.runner.trt_log import TRT_RUNTIMES, load_module
from deploy.runner.writing import write_json

LOG_FILE = "runner.log"
_LOG_TIME = "%Y-%m-%d %H:%M:%S "


def run_experiment(
    directory: Path,
    announce: Callable[[str], None] = print,
    only: str | None = None,
    while_waiting: Callable[[], None] = lambda: None,
    *,
    alone: bool = False,
) -> dict[str, Any]:
    """Measure the candidates of `directory` that have no result yet (or only the one named `only`), and return
    `measurements.json`.

    1. It is written after each candidate, so a run that is killed loses one candidate at most.
    2. A candidate that does not build, or does not run to the end, is a result with its reason and cause; the others
       are measured all the same. It is measured again the next time unless the runtime refused it.
    3. Results of another fingerprint, machine or version of the runtime are dropped, and measured again.
    4. Two never work in a directory at once; `while_waiting` is called every second of waiting for another one.
    5. A candidate over which the process died twice is given up. `alone`: the process does other work too, and that it
       was ended from outside is no fault of a candidate (`deploy.runner.experiment.watched`).

    Raises DeviceError when nothing can be measured: a missing module, damaged files, or a float engine that does not
    build, or no longer runs.
    """
    experiment = read_experiment(directory)
    version = _runtime_version(experiment["runtime"])
    with locked(directory, announce, while_waiting):
        record = _record(experiment, directory, version, announce)
        done = {entry["key"] for entry in record["results"]}
        chosen = [entry for entry in experiment["candidates"] if only in (None, entry["name"])]
        if not chosen and only is not None:
            raise DeviceError(f"there is no candidate {only}: see --list")
        waiting = [entry for entry in chosen if result_key(experiment, entry) not in done]
        announce(f"{len(chosen) - len(waiting)} of {len(chosen)} candidates are measured already")
        if waiting:
            _measure_all(experiment, waiting, record, directory, announce, alone=alone)
    return record


def list_candidates(directory: Path) -> list[str]:
    """Return a line for each candidate: its name, and what is known of it."""
    experiment = read_experiment(directory)
    record = read_results_file(directory / RESULTS_FILE)
    known = {entry["key"]: entry for entry in record["results"]} if record else {}
    lines = []
    for candidate in experiment["candidates"]:
        result = known.get(result_key(experiment, candidate))
        lines.append(_line(result) if result else f"waiting  {candidate['name']}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and run; returns the exit code: 0 done, 2 something has to be changed, which the last line
    says, 130 stopped by Ctrl-C.
    """
    parser = argparse.ArgumentParser(description="Build and time the engines of an experiment on this machine.")
    parser.add_argument(
        "directory", nargs="?", type=Path, default=Path(), help="where experiment.json is (default: here)"
    )
    parser.add_argument("--only", metavar="NAME", help="measure this candidate only")
    parser.add_argument(
        "--list", action="store_true", help="list the candidates and what is known of them, and measure nothing"
    )
    options = parser.parse_args(arguments)
    try:
        if options.list:
            sys.stdout.write("".join(f"{line}\n" for line in list_candidates(options.directory)))
        else:
            log = _Log(options.directory / LOG_FILE)
            run_experiment(options.directory, log, options.only, log.follow)
    except (DeviceError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; what was measured is kept, the same command goes on from there\n")
        return 130
    return 0


class _Log:
    """Writes lines to the terminal and to a file; goes on with the file alone when nobody listens any more, as after a
    cut connection.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._told = file.stat().st_size if file.is_file() else 0
        self._listened_to = True

    def __call__(self, line: str) -> None:
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(f"{time.strftime(_LOG_TIME)}{line}\n")
        self._tell(line)

    def follow(self) -> None:
        """Tell the results that another runner has written since the last time."""
        with self._file.open(encoding="utf-8") as stream:
            stream.seek(self._told)
            lines = stream.read().splitlines()
            self._told = stream.tell()
        for line in (line[len(time.strftime(_LOG_TIME)) :] for line in lines):
            if line.startswith(("measured", "failed")):
                self._tell(line)

    def _tell(self, line: str) -> None:
        if not self._listened_to:
            return
        try:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        except OSError:
            self._listened_to = False


def _runtime_version(runtime: str) -> str:
    if runtime not in OPENERS:
        raise DeviceError(f"unknown runtime {runtime}: this runner knows {', '.join(OPENERS)}")
    if runtime in TRT_RUNTIMES:
        return str(load_module(runtime).__version__)
    try:
        return str(importlib.import_module(runtime).__version__)
    except ImportError as error:
        raise MissingModule(
            f"Python has no module {runtime} here ({error}): install it, as with pip install {runtime}"
        ) from error


def _record(
    experiment: Mapping[str, Any], directory: Path, version: str, announce: Callable[[str], None]
) -> dict[str, Any]:
    """Return what earlier runs have measured of the same things, or a record without results."""
    runtime = experiment["runtime"]
    record = {
        "schema": SCHEMA,
        "fingerprint": experiment["fingerprint"],
        "runtime": runtime,
        "versions": {"python": sys.version.split()[0], "numpy": np.__version__, runtime: version},
        "machine": machine(),
        "hardware": {"gpu": None, "jetson_release": jetson_release(), "power_mode": power_mode()},
        "results": [],
    }
    earlier = read_results_file(directory / RESULTS_FILE)
    if earlier is None:
        return record
    for what, now, then in (
        ("fingerprint", record["fingerprint"], earlier["fingerprint"]),
        ("machine", record["machine"], earlier["machine"]),
        (f"version of {runtime}", version, earlier["versions"].get(runtime)),
    ):
        if now != then:
            announce(f"{RESULTS_FILE} was made with another {what} ({then}, now {now}): measuring again")
            return record
    return {**earlier, "results": [entry for entry in earlier["results"] if entry.get("cause") in (None, REFUSED)]}


def _measure_all(
    experiment: Mapping[str, Any],
    waiting: Sequence[Mapping[str, Any]],
    record: dict[str, Any],
    directory: Path,
    announce: Callable[[str], None],
    *,
    alone: bool,
) -> None:
    bench = open_bench(experiment, directory, alone=alone)
    try:
        bench.run_baseline()
        if isinstance(bench.baseline, GpuTimed):
            record["hardware"] = {**record["hardware"], "gpu": bench.baseline.gpu}
        for candidate in waiting:
            result = bench.measure(candidate, record["results"])
            record["results"].append(result)
            write_json(directory / RESULTS_FILE, record)
            announce(_line(result))
            _keep_product(directory, result, record["machine"], announce)
            if result["failed"] is not None or result["notes"]:
                bench.run_baseline()  # an error of CUDA may have ended all work of this process
    finally:
        bench.baseline.close()


def _keep_product(
    directory: Path, result: Mapping[str, Any], machine_name: str, announce: Callable[[str], None]
) -> None:
    """Write the plan that was measured as a product; the measurement stands whether or not that works."""
    try:
        write_product(directory, result, machine_name)
    except OSError as error:
        announce(f"the plan of {result['name']} was measured, and not kept as a product: {error}")


def _line(result: Mapping[str, Any]) -> str:
    if result["failed"] is not None:
        return f"failed   {result['name']}: {result['failed']}"
    low, high = result["ratio_interval"]
    reasons = result["state"]["throttled"]
    slow = f"; the machine slowed down each time: {', '.join(reasons)}" if reasons else ""
    busy = (
        f"; the float engine took {result['slowdown']:.2f}x of its fastest time"
        if result["slowdown"] > 1 + QUIET
        else ""
    )
    figures = f"{result['ratio']:.3f}x of float ({low:.3f} to {high:.3f}), {result['engine_ms']:.3f} ms"
    return f"measured {result['name']}: {figures}{slow}{busy}"
