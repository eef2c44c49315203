"""Tests of processes, signals and connections, repeated on a busy machine and with SIGINT ignored, as in a job of a
script.

Usage: repetitions.py [--times N] [--busy 1]

`--busy` is the number of loops that run beside them. The record has the load of the machine behind each repetition.

Counts how often each test passed, failed or was skipped. The tests are those below, where `-k` chooses in files with
others.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from xml.etree import ElementTree as ET

from records import keep

ROOT = Path(__file__).resolve().parent.parent
FILES = (
    "tests/deploy/terminal/test_signals.py", "tests/deploy/runner/test_main.py", "tests/deploy/runner/test_causes.py",
    "tests/smpq/value/workers/test_local.py", "tests/test_killed_runs.py", "tests/deploy/devices/test_ssh.py",
    "tests/deploy/devices/test_ssh_loop.py", "tests/deploy/devices/test_odd_devices.py",
)  # fmt: skip
CHOSEN = "signals or kills or crash or two_runners or end_with or start or killed or test_ssh or odd_devices"


def once() -> dict[str, str]:
    """Run the tests; returns what came of each."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:xdist",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            "-k",
            CHOSEN,
        ]
        done = subprocess.run([*command, *FILES], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        sys.stderr.write(done.stdout[-2000:])
        cases = ET.parse(report).iter("testcase")
        return {f"{case.get('classname')}::{case.get('name')}": _outcome(case) for case in cases}


def _outcome(case: ET.Element) -> str:
    return next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--busy", type=int, default=1)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the tests inherit
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
    loads: list[float] = []
    try:
        for done in range(1, options.times + 1):
            for name, outcome in once().items():
                counts[name][outcome] += 1
            loads.append(round(os.getloadavg()[0], 1))
            rows = [{"test": name, **found} for name, found in sorted(counts.items())]
            command = f"python benchmarks/repetitions.py --times {options.times} --busy {options.busy}"
            keep("repetitions", command, [], rows, times=done, loads=loads)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


if __name__ == "__main__":
    main()
