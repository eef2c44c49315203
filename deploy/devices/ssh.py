"""Another machine as the device, reached over ssh: files are copied there, the runner is started, its results are
copied back.
"""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from calib.errors import UserError
from calib.files.storage import read_record, record_from_text, writing
from deploy.devices.base import Announce, Experiment, Result, silent
from deploy.devices.bundle import asked_of, write_bundle
from deploy.devices.checks import check_measured, check_results, keys_of
from deploy.devices.connection import DIED, PYTHON_MISSING, Address, Connection, Dropped, RemoteFailed
from deploy.devices.known import keep_results, known_of, read_known, results_in_order
from deploy.devices.messages import Described, DeviceResults, read_message
from deploy.devices.places import machine_directory, note_removed, note_used, run_name, used_directories
from deploy.devices.products import LARGEST_DESCRIPTION_BYTES, ProductFile, damaged_files, take_product
from deploy.devices.runner_zip import RUNNER_FILE, program_text
from deploy.runner.experiment import RESULTS_FILE
from deploy.runner.hashes import sha256_of
from deploy.runner.product import ENGINE_JSON, ENGINES_DIRECTORY
from deploy.terminal.printable import printable
from deploy.terminal.signals import deferred

_DELAYS_S = (1.0, 2.0, 4.0, 8.0, 16.0)
_ROOT = ".cache/smpq"
_INCOMING = "incoming"
_OLDEST_PYTHON = (3, 10)
_ROUNDS = 3
"""What is known is measured again when the device turns out to have another version of the runtime; which may happen
once.
"""
_DESCRIBE = "import json, numpy; from deploy.runner.state import machine; print(json.dumps({'machine': machine()}))"
_TOO_OLD = (
    "sys.exit('error: %s is Python %d.%d, and 3.10 or later is needed' % ((sys.executable,) + sys.version_info[:2]))"
)
_REMOVE = """\
cd {directory} 2>/dev/null || exit 0
running() {{
    for process in $(grep -ls {runner} /proc/[0-9]*/cmdline); do
        process="${{process%/cmdline}}"
        [ "$(readlink $process/cwd)" = "$(pwd -P)" ] || continue
        tr '\\0' '\\n' < $process/cmdline | grep -qx {runner} && echo "${{process#/proc/}}"
    done 2>/dev/null
}}
for signal in TERM 0 0 0 0 0 0 0 0 0 KILL 0 0 0 0 0; do
    runners=$(running)
    [ -n "$runners" ] || break
    kill -$signal $runners 2>/dev/null
    sleep 0.2 2>/dev/null || sleep 1
done
for attempt in 1 2 3 4 5; do
    cd && rm -rf {directory} && break
    sleep 1
done
rmdir {root} 2>/dev/null
test ! -e {directory}
"""
"""A runner that does not end when it is asked to is killed: one that is stopped, say, hears nothing."""


class SshDevice:
    """Measures on another machine, in a directory of its own below ~/.cache/smpq, which `close` removes.

    1. Only files that are not there yet are copied, first to another name, so that none is ever used by half.
    2. The runner goes on when the connection is lost, and two never work at once. The connection is made again, some
       seconds later each time; what is measured already, there or here, is not measured again.
    3. What another attempt would not change (login, host, Python, a module) is a UserError at once.
    4. What comes from the machine is checked, bounded in size, and printed without control characters.
    """

    def __init__(self, address: str, directory: Path, delays_s: Sequence[float] = _DELAYS_S) -> None:
        """`directory` keeps the files here, those of each machine apart.

        A lost connection is made again after each of `delays_s` seconds, then given up; what follows, as `close`, tries
        once. The result of another candidate starts that count again, so the attempts are bounded.
        """
        self._address = Address.from_text(address)
        self._connection = Connection(self._address)
        self._where = self._address.text.partition("?")[0]  # another Python there leaves its files in the same place
        self._directory = directory
        self._delays_s = delays_s
        self._machine = ""
        self._lost = 0
        self._away = False

    def describe(self) -> str:
        """Name the machine, and check its Python."""
        if not self._machine:
            program = program_text(_DESCRIBE, _OLDEST_PYTHON, _TOO_OLD)
            answer = self._patiently(lambda: self._connection.run_python(program), silent)
            try:
                described = record_from_text(answer, Described, "its answer", "a login there must not print anything")
                self._machine = described.machine
            except UserError as error:
                raise self._to_change(f"it answers {printable(answer, 80)!r}: {printable(str(error))}") from error
        return self._machine

    def measure(self, experiment: Experiment, announce: Announce = silent) -> list[Result]:
        """See `Device`."""
        place = machine_directory(self._directory, self.describe())
        asked = asked_of(experiment)
        for _ in range(_ROUNDS):
            known = read_known(place, asked)
            waiting = [c for c, key in zip(experiment.candidates, keys_of(asked), strict=True) if key not in known]
            if not waiting:
                return results_in_order(known, asked)
            self._measure(replace(experiment, candidates=tuple(waiting)), place, announce)
        raise self._to_change("the version of its runtime changes while it measures: start again")

    def known(self, experiment: Experiment) -> list[Result]:
        """See `Device`. What was measured there and has not come here yet is not known."""
        return known_of(machine_directory(self._directory, self.describe()), experiment)

    def fetch_engine(self, result: Result, directory: Path) -> ProductFile | None:
        """See `Device`. What has come from the device once is kept here, since its directory there is removed at the
        end.
        """
        kept = machine_directory(self._directory, self.describe()) / ENGINES_DIRECTORY / result.name
        product = take_product(kept, result, directory)
        for there in used_directories(self._directory, self._where) if product is None else ():
            with writing(kept):
                kept.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=kept.parent) as temporary:
                    arrived = Path(temporary) / result.name
                    if self._fetched(f"{there}/{ENGINES_DIRECTORY}/{result.name}", arrived):
                        take_product(arrived, result, kept)
            product = take_product(kept, result, directory)
        return product

    def close(self) -> None:
        """Stop a runner that is still at work, and remove the directories that were made on the device, by an earlier
        command too.

        Signals that ask this process to end wait until that is done.
        """
        with deferred():
            for directory in used_directories(self._directory, self._where):
                script = _REMOVE.format(directory=shlex.quote(directory), root=_ROOT, runner=RUNNER_FILE)
                self._patiently(partial(self._connection.run, script), silent)
                note_removed(self._directory, self._where, directory)

    def _measure(self, experiment: Experiment, place: Path, announce: Announce) -> None:
        """Measure there, and keep what comes back here."""
        files, asked = write_bundle(experiment, place), asked_of(experiment)
        digests = {file: sha256_of(file) for file in files}
        heard = _Heard(announce, experiment, self._forget_losses)
        with tempfile.TemporaryDirectory(dir=place) as temporary:
            file = Path(temporary) / RESULTS_FILE
            self._patiently(lambda: self._measure_there(experiment.fingerprint, digests, file, heard), announce)
            try:
                arrived = read_message(file, DeviceResults, "", "start again")
                results = check_results(arrived, asked, earlier=None)
            except UserError as error:
                raise self._to_change(printable(str(error))) from error
        if arrived.machine != self._machine:
            raise self._to_change(f"it called itself {self._machine}, and now {arrived.machine}: start again")
        keep_results(place, arrived, results)
        check_measured(results.values())
        if len(results) < len(keys_of(asked)):
            raise self._to_change("it sent no result for some candidates: start again")

    def _forget_losses(self) -> None:
        self._lost = 0

    def _measure_there(self, fingerprint: str, files: Mapping[Path, str], arrived: Path, announce: Announce) -> None:
        directory = f"{_ROOT}/{fingerprint[:16]}-{run_name(self._directory)}"
        note_used(self._directory, self._where, directory)
        self._copy(directory, files, announce)
        self._connection.stream(f"{_cd(directory)} && {self._address.python_word} {RUNNER_FILE}; exit $?", announce)
        self._connection.fetch(f"{directory}/{RESULTS_FILE}", arrived)

    def _fetched(self, there: str, arrived: Path) -> bool:
        """Copy a product from the device, each file as large as its description says; False when there is none."""
        if not self._patiently(
            lambda: self._connection.run(f"ls {shlex.quote(f'{there}/{ENGINE_JSON}')} 2>/dev/null; exit 0"), silent
        ):
            return False
        arrived.mkdir()
        file = arrived / ENGINE_JSON
        self._patiently(
            lambda: self._connection.fetch(f"{there}/{ENGINE_JSON}", file, LARGEST_DESCRIPTION_BYTES), silent
        )
        try:
            product = read_record(file, ProductFile, "start again")
        except UserError as error:
            raise self._to_change(printable(str(error))) from error
        for name, row in product.files.items():
            # one byte more, so that a file that is longer is told from one that is whole
            fetch = partial(self._connection.fetch, f"{there}/{name}", arrived / name, row.size_bytes + 1)
            self._patiently(fetch, silent)
        wrong = damaged_files(arrived, product)
        if wrong:
            raise self._to_change(
                f"its engine {product.name} is not what its own description says ({', '.join(wrong)}): start again"
            )
        return True

    def _copy(self, directory: str, files: Mapping[Path, str], announce: Announce) -> None:
        """Make the files be there. They arrive in a directory of their own, and are moved when all are complete."""
        make = f"mkdir -p {shlex.quote(f'{directory}/{_INCOMING}')}"
        make = (
            f"{{ {make} || {make}; }} && {_cd(directory)} || exit 1"  # another run may remove the empty root meanwhile
        )
        names = " ".join(shlex.quote(name) for file in files for name in (file.name, f"{_INCOMING}/{file.name}"))
        lines = self._connection.run(f"{make}; sha256sum -- {names} 2>/dev/null; exit 0").splitlines()
        there = {line[66:]: line[:64] for line in lines}  # the digest, a blank, a blank or a star, the name
        missing = [file for file, digest in files.items() if there.get(file.name) != digest]
        to_send = [file for file in missing if there.get(f"{_INCOMING}/{file.name}") != files[file]]
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
                self._lost, self._away = 0, False
                return answer
            except RemoteFailed as error:
                if error.code <= DIED:
                    raise self._failed(error) from error
                reason = f"the program there died with exit code {error.code}"
            except Dropped as error:
                reason = f"connection lost ({error})"
            if self._away or self._lost == len(self._delays_s):
                self._lost, self._away = 0, True
                raise self._to_change(f"{reason}; what is measured is kept, so start again when it can be reached")
            announce(f"{self._address.host}: {reason}, trying again in {self._delays_s[self._lost]:g} s")
            time.sleep(self._delays_s[self._lost])
            self._lost += 1

    def _failed(self, error: RemoteFailed) -> UserError:
        if error.code == PYTHON_MISSING:
            return self._to_change(
                f"there is no {self._address.python}: install it, or name another with ?python=/path/python3"
            )
        if "No module named 'numpy'" in error.errors:
            return self._to_change(
                f"its {self._address.python} has no module numpy: install it, as with pip install numpy"
            )
        return self._to_change(str(error).removeprefix("error: "))

    def _to_change(self, what: str) -> UserError:
        return UserError(f"{self._address.text}: {what}")


class _Heard:
    """Passes lines on, and calls `progressed` for the first result of each candidate, which shows that the work goes
    on.
    """

    def __init__(self, announce: Announce, experiment: Experiment, progressed: Callable[[], None]) -> None:
        self._announce = announce
        self._progressed = progressed
        self._awaited = {candidate.name for candidate in experiment.candidates}

    def __call__(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        name = rest.strip().partition(":")[0]
        if word in ("measured", "failed") and name in self._awaited:
            self._awaited.discard(name)
            self._progressed()
        self._announce(line)


def _cd(directory: str) -> str:
    return f"cd {shlex.quote(directory)}"
