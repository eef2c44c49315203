"""Another machine as the device, reached over ssh: files are copied there, the runner is started, its results are copied back."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from calib.errors import UserError
from deploy.devices.base import Announce, Experiment, Result, silent
from deploy.devices.bundle import RUNNER_FILE, read_measurements, results_of, write_bundle
from deploy.devices.connection import Address, Connection, Dropped, RemoteFailed, last_line
from deploy.on_device import state
from deploy.on_device.errors import DeviceError
from deploy.on_device.experiment import MEASUREMENTS_FILE, read_measurements_file

_DELAYS_S = (1.0, 2.0, 4.0, 8.0, 16.0)
_ROOT = ".cache/smpq"
_INCOMING = "incoming"
_OLDEST_PYTHON = (3, 10)
_PYTHON_MISSING = 127
_DIED = 128
_DESCRIBE = """
import json
import sys

import numpy

print(json.dumps([machine(), sys.version_info[:2]]))
"""
_REMOVE = """\
cd {directory} 2>/dev/null || exit 0
for process in /proc/[0-9]*; do
    [ "$(readlink $process/cwd)" = "$(pwd -P)" ] || continue
    tr '\\0' '\\n' < $process/cmdline | grep -qx {runner} && kill "${{process#/proc/}}"
done 2>/dev/null
for attempt in 1 2 3 4 5; do
    cd && rm -rf {directory} && break
    sleep 1
done
rmdir {root} 2>/dev/null
test ! -e {directory}
"""


class SshDevice:
    """Measures on another machine, in a directory of its own below ~/.cache/smpq, which `close` removes.

    1. Only files that are not there yet are copied, first to another name, so that none is ever used by half.
    2. The runner goes on when the connection is lost, and two never work at once. The connection is made again, some seconds later
       each time; what is measured already, there or here, is not measured again.
    3. What another attempt would not change (login, host, Python, a module) is a UserError at once.
    """

    def __init__(self, address: str, directory: Path, delays_s: Sequence[float] = _DELAYS_S) -> None:
        """`directory` keeps the files here. A lost connection is made again after each of `delays_s` seconds, then given up.

        A new result starts that count again.
        """
        self._address = Address.from_text(address)
        self._connection = Connection(self._address)
        self._directory = directory
        self._delays_s = delays_s
        self._used: set[str] = set()
        self._machine = ""
        self._lost = 0

    def describe(self) -> str:
        """Name the machine, and check its Python."""
        if not self._machine:
            script = f"{shlex.quote(self._address.python)} -; exit $?"
            source = Path(state.__file__).read_text(encoding="utf-8") + _DESCRIBE
            answer = self._patiently(lambda: self._connection.run(script, source), silent)
            try:
                machine, version = json.loads(last_line(answer))
            except (TypeError, ValueError) as error:
                raise UserError(f"{self._address.text} answers {answer!r:.80}: a login there must not print anything") from error
            if tuple(version) < _OLDEST_PYTHON:
                raise self._to_change(
                    f"its {self._address.python} is Python {version[0]}.{version[1]}, and 3.10 or later is needed"
                )
            self._machine = str(machine)
        return self._machine

    def measure(self, experiment: Experiment, announce: Announce = silent) -> list[Result]:
        """See `Device`."""
        self.describe()
        known = self._known(experiment)
        waiting = tuple(c for c, result in zip(experiment.candidates, known, strict=True) if result is None)
        if waiting:
            files = write_bundle(replace(experiment, candidates=waiting), self._directory)
            digests = {file: _sha256(file) for file in files}
            self._patiently(lambda: self._measure_there(experiment.fingerprint, digests, announce), announce)
        results = [result for result in self._known(experiment) if result is not None]
        if len(results) < len(experiment.candidates):
            raise self._to_change(f"it sent no result for some candidates: look at {MEASUREMENTS_FILE} in {self._directory}")
        return results

    def close(self) -> None:
        """Stop a runner that is still at work, and remove the directories that were used on the device."""
        for directory in sorted(self._used):
            script = _REMOVE.format(directory=shlex.quote(directory), root=_ROOT, runner=RUNNER_FILE)
            self._patiently(partial(self._connection.run, script), silent)
            self._used.discard(directory)

    def _known(self, experiment: Experiment) -> list[Result | None]:
        """Return the results that are here, of this machine."""
        try:
            record = read_measurements_file(self._directory / MEASUREMENTS_FILE)
        except DeviceError as error:
            raise UserError(str(error)) from error
        if record is None or (record["fingerprint"], record["machine"]) != (experiment.fingerprint, self._machine):
            return [None] * len(experiment.candidates)
        return results_of(experiment, record["results"])

    def _measure_there(self, fingerprint: str, files: Mapping[Path, str], announce: Announce) -> None:
        directory = f"{_ROOT}/{fingerprint[:16]}"
        self._used.add(directory)
        self._copy(directory, files, announce)

        def heard(line: str) -> None:
            if line.startswith(("measured", "failed")):
                self._lost = 0  # the work goes on, however often the connection is lost
            announce(line)

        self._connection.stream(f"{_cd(directory)} && {shlex.quote(self._address.python)} {RUNNER_FILE}; exit $?", heard)
        arrived = self._directory / f".{MEASUREMENTS_FILE}.arrived"
        self._connection.fetch(f"{directory}/{MEASUREMENTS_FILE}", arrived)
        read_measurements(arrived, fingerprint)
        arrived.replace(self._directory / MEASUREMENTS_FILE)

    def _copy(self, directory: str, files: Mapping[Path, str], announce: Announce) -> None:
        """Make the files be there. They arrive in a directory of their own, and are moved when all are complete."""
        make = f"mkdir -p {shlex.quote(f'{directory}/{_INCOMING}')} && {_cd(directory)} || exit 1"
        lines = self._connection.run(f"{make}; sha256sum *.* {_INCOMING}/*.* 2>/dev/null; exit 0").splitlines()
        there = {line[66:]: line[:64] for line in lines}  # the digest, a blank, a blank or a star, the name
        wanted = dict(files)
        here = self._directory / MEASUREMENTS_FILE
        if MEASUREMENTS_FILE not in there and here.is_file():
            wanted[here] = _sha256(here)
        missing = [file for file, digest in wanted.items() if there.get(file.name) != digest]
        to_send = [file for file in missing if there.get(f"{_INCOMING}/{file.name}") != wanted[file]]
        if to_send:
            megabytes = sum(file.stat().st_size for file in to_send) / 1e6
            announce(f"copying {len(to_send)} files to {self._address.host}, {megabytes:.1f} MB")
            self._connection.send(to_send, f"{directory}/{_INCOMING}/")
        moves = [f"mv -f {shlex.quote(f'{_INCOMING}/{file.name}')} {shlex.quote(file.name)}" for file in missing]
        if moves:
            self._connection.run(" && ".join([_cd(directory), *moves]))

    def _patiently(self, action: Callable[[], str | None], announce: Announce) -> str:
        """Do it again while the connection is lost or the runner dies; returns the output."""
        while True:
            try:
                answer = action() or ""
                self._lost = 0
                return answer
            except RemoteFailed as error:
                if error.code <= _DIED:
                    raise self._failed(error) from error
                reason = f"the program there died with exit code {error.code}"
            except Dropped as error:
                reason = f"connection lost ({error})"
            if self._lost == len(self._delays_s):
                self._lost = 0
                raise self._to_change(f"{reason}; what is measured is kept, so start again when it can be reached")
            announce(f"{self._address.host}: {reason}, trying again in {self._delays_s[self._lost]:g} s")
            time.sleep(self._delays_s[self._lost])
            self._lost += 1

    def _failed(self, error: RemoteFailed) -> UserError:
        if error.code == _PYTHON_MISSING:
            return self._to_change(f"there is no {self._address.python}: install it, or name another with ?python=/path/python3")
        if "No module named 'numpy'" in error.errors:
            return self._to_change(f"its {self._address.python} has no module numpy: install it, as with pip install numpy")
        return self._to_change(str(error).removeprefix("error: "))

    def _to_change(self, what: str) -> UserError:
        return UserError(f"{self._address.text}: {what}")


def _cd(directory: str) -> str:
    return f"cd {shlex.quote(directory)}"


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
