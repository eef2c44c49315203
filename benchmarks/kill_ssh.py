"""`smpq run` with a latency budget on a device over ssh, killed at random moments, and stopped by SIGTERM and SIGHUP.

Usage: kill_ssh.py [--kills N] [--stops N]

The device is this machine behind an ssh server of asyncssh, with a home directory of its own. An undisturbed run gives
scores.json, which depends on no measured time. Then the same command is killed (SIGKILL) and started again in the same
directory, five times a run, and at last it is left to end. A moment is drawn uniformly from the measurements of the
undisturbed run, plus up to three seconds. Checked at the end: scores.json is the same; what had been measured at a kill
has the same figures at the end; the runner has measured as often as there are results; nothing is left on the device.
Other runs are stopped by SIGTERM and SIGHUP in turn, after which nothing may be left on the device either.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from records import keep

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tests.deploy.devices.servers import Server, serving  # noqa: E402 - found by the path above
from tests.deploy.devices.test_ssh import runners  # noqa: E402 - found by the path above
from tests.processes import hearing_signals  # noqa: E402 - found by the path above

SEED = 0
KILLS_A_RUN = 5
JOB = ("run", "--task", "digits", "--target", "ort-cpu", "--budget", "latency=0.8x", "--formats", "w8a8,fp32",
       "--effort", "fast", "--evaluations", "20", "--samples", "64")  # fmt: skip


class Job:
    """The command in one run directory, and what its runners write on the device."""

    def __init__(self, server: Server, run: Path) -> None:
        self.server, self.run = server, run
        self._logs: dict[int, object] = {}
        self.noted: set[str] = set()
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        environment = {**os.environ, "SMPQ_SSH_OPTIONS": self.server.options, "OMP_NUM_THREADS": "1"}
        command = hearing_signals(sys.executable, "-m", "cli", *JOB, "--out", self.run, "--device", self.server.address)
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def left(self) -> list[Path]:
        return list((self.server.home / ".cache" / "smpq").glob("*"))

    def measured(self) -> list[str]:
        """Names of the engines that runners have measured, in all logs there have been; a log is read even when it has
        been removed. The keys of the results that the device has are `noted`.
        """
        for directory in self.left():
            with contextlib.suppress(OSError):
                self.noted |= {
                    each["key"] for each in json.loads((directory / "measurements.json").read_text())["results"]
                }
            with contextlib.suppress(OSError):
                log = (directory / "runner.log").open()
                self._logs.setdefault(os.fstat(log.fileno()).st_ino, log)
        lines = []
        for log in self._logs.values():
            log.seek(0)
            lines += [line.split()[3] for line in log.read().splitlines() if line.split()[2:3] == ["measured"]]
        return lines

    def until(self, count: int, delay: float) -> None:
        """Wait until `count` more engines than at the start are measured and `delay` seconds more, or until the command
        ends.
        """
        before = len(self.measured())
        while self.process.poll() is None and len(self.measured()) < before + count:
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.communicate(timeout=delay)
        self.measured()

    def end(self, number: int | None = None) -> int:
        """Send a signal, if one is given, and return how the command ended."""
        if number is not None:
            self.process.send_signal(number)
        while self.process.poll() is None:
            self.measured()
            time.sleep(0.02)
        errors = self.process.communicate()[1]
        if number is None and self.process.returncode not in (0, 1):
            raise SystemExit(f"exit code {self.process.returncode}: {errors.decode()}")
        return self.process.returncode

    def known(self) -> dict[str, dict]:
        """Results that are kept here, by key."""
        files = (self.run / "device").glob("*/measurements.json")
        return {result["key"]: result for file in files for result in json.loads(file.read_text())["results"]}

    def nothing_left(self) -> bool:
        time.sleep(0.5)
        return not self.left() and not [pid for directory in self.left() for pid in runners(directory)]


def kills(server: Server, count: int, scores: bytes, engines: int, places: Path) -> tuple[list[dict], list[dict]]:
    moments, rows, runs = random.Random(SEED), [], []
    while len(rows) < count:
        job = Job(server, places / f"run{len(runs)}")
        kept: dict[str, dict] = {}
        for _ in range(min(KILLS_A_RUN, count - len(rows))):
            more, delay = moments.randrange(1, max(2, engines // KILLS_A_RUN + 1)), moments.uniform(0, 3)
            job.start()
            job.until(more, delay)
            code = job.end(signal.SIGKILL)
            kept.update(job.known())
            rows.append({"run": len(runs), "after_engines": more, "and_s": round(delay, 2), "ended_by": code,
                         "measured": len(job.measured()), "known_here": len(kept)})  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
        job.start()
        code = job.end()
        known, names = job.known(), job.measured()
        runs.append({
            "run": len(runs), "exit_code": code, "engines": len(known), "measured": len(names),
            "measured_once": len(names) == len(job.noted | known.keys()), "nothing_lost": job.noted <= known.keys(),
            "same_scores": (job.run / "scores.json").read_bytes() == scores,
            "same_results": all(known[key] == kept[key] for key in kept), "nothing_left": job.nothing_left(),
        })  # fmt: skip
        print(runs[-1], file=sys.stderr, flush=True)
    return rows, runs


def stops(server: Server, count: int, places: Path) -> list[dict]:
    moments, rows = random.Random(SEED + 1), []
    for index in range(count):
        job, name = Job(server, places / f"stopped{index}"), ("SIGTERM", "SIGHUP")[index % 2]
        more, delay = moments.randrange(1, 4), moments.uniform(0, 2)
        job.start()
        job.until(more, delay)
        at_work = job.process.poll() is None
        rows.append({"signal": name, "after_engines": more, "and_s": round(delay, 2), "at_work": at_work,
                     "exit_code": job.end(getattr(signal, name)), "nothing_left": job.nothing_left()})  # fmt: skip
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--stops", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as places:
        (Path(places) / "sshd").mkdir()
        with serving("asyncssh", Path(places) / "sshd") as server:
            whole = Job(server, Path(places) / "undisturbed")
            whole.start()
            whole.end()
            engines = len(whole.measured())
            print({"engines": engines, "nothing_left": whole.nothing_left()}, file=sys.stderr, flush=True)
            rows, runs = kills(server, options.kills, (whole.run / "scores.json").read_bytes(), engines, Path(places))
            stopped = stops(server, options.stops, Path(places))
    keep(
        "kill_ssh",
        f"python benchmarks/kill_ssh.py --kills {options.kills} --stops {options.stops}",
        [SEED],
        rows,
        runs=runs,
        stops=stopped,
    )


if __name__ == "__main__":
    main()
