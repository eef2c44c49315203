"""A run: the directory that holds everything one search made, readable and editable between stages."""

from __future__ import annotations

import errno
import functools
import os
import sys
import weakref
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import msgspec

from calib.declared import APath
from calib.errors import UserError
from calib.files.storage import FileRecord, about, cannot_write, read_record, write_record
from calib.network.fingerprint import Fingerprint
from deploy.run.record import ResourcesRow, RunFile
from deploy.run.settings import Settings
from deploy.targets.installed import packaged_version
from smpq.files import OfPolicy
from smpq.value.workers.resources import Resources

DECISIVE = ("smpq", "torch", "onnx", "onnx-ir", "onnxscript")
"""Packages whose version decides what is computed and exported: a run goes on with the ones that it began with."""
_LOCK = "run.lock"
_SHOWN = 80
_PACKAGES = (
    "smpq", "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "scipy", "numpy", "tensorrt-rtx", "tensorrt",
)  # fmt: skip

FileType = TypeVar("FileType", bound=FileRecord)
PolicyFileType = TypeVar("PolicyFileType", bound=OfPolicy)


class Run:
    """One run directory. Its JSON files are typed records (`deploy.files`), written in one step, so that a kill never
    leaves half a file.
    """

    def __init__(self, path: Path) -> None:
        """Name a run; nothing is created yet."""
        self.path = path
        self._made: tuple[Path, ...] = ()

    def check(self, settings: Settings) -> None:
        """Raise UserError when a run with these settings cannot be here: a file is, other files are, or a run with
        other settings. So it is where the system has no such path.
        """
        if not APath().allows(self.path):
            shown = repr(str(self.path))
            raise UserError(f"--out must be {APath()}, not {shown if len(shown) <= _SHOWN else f'{shown[:_SHOWN]}...'}")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: give --out a directory")
        if not self.has(RunFile.NAME):
            others = [
                entry.name for entry in _entries(self.path) if entry.name != _LOCK and not entry.name.startswith(".")
            ]
            if others:
                raise UserError(f"{self.path} holds other files ({min(others)}): give --out a new or empty directory")
            return
        known = self.settings()
        for name in Settings.__struct_fields__:
            then, now = getattr(known, name), getattr(settings, name)
            if then != now:
                raise UserError(
                    f"{self.path} holds a run with {name}={then!r}, now {now!r} is asked for: use another --out, or "
                    "delete it"
                )

    def lock(self) -> None:
        """Keep other processes from working on this run as long as this object lives; UserError when one does already.

        The directory is made when it is missing. `discard_if_new` takes it away again.
        """
        try:
            self._made = tuple(path for path in (self.path, *self.path.parents) if not path.exists())
            self.path.mkdir(parents=True, exist_ok=True)
            handle = _locked(self.file(_LOCK))
        except OSError as error:
            raise UserError(cannot_write(self.path, error)) from error
        if handle is None:
            raise UserError(
                f"another process works on {self.path}: wait until it is done, stop it, or use another --out"
            )
        weakref.finalize(self, os.close, handle)

    def discard_if_new(self) -> None:
        """Remove the directories that `lock` has made and that hold nothing else:
        a wrong input leaves nothing behind.
        """
        if [entry.name for entry in _entries(self.path)] != [_LOCK]:
            return
        self.file(_LOCK).unlink(missing_ok=True)
        with suppress(OSError):  # another process has begun something here
            for directory in self._made:
                directory.rmdir()

    def keep(
        self,
        settings: Settings,
        fingerprint: Fingerprint,
        resources: Resources | None = None,
        *,
        trainable: bool | None = None,
        address: str | None = None,
    ) -> None:
        """Write `run.json` unless it is there; UserError, which names what changed, when it was made of something else.

        `resources`, `trainable` and `address`, which may change from command to command, are written down as
        information; None leaves what is there.
        """
        row = ResourcesRow(**asdict(resources)) if resources is not None else None
        told = {"resources": row, "trainable": trainable, "address": address}
        told = {name: each for name, each in told.items() if each is not None}
        record = self.find(RunFile)
        if record is None:
            found = RunFile(settings=settings, fingerprint=fingerprint, versions=versions())
            self.write(msgspec.structs.replace(found, **told))
            return
        changed = record.fingerprint.differences(fingerprint)
        if changed:
            raise UserError(
                f"{', '.join(changed)} changed since {self.file(RunFile.NAME)} was made, and the run is about the old "
                "state: use another --out, "
                "or delete it"
            )
        latest = msgspec.structs.replace(record, **told)
        if latest != record:
            self.write(latest)

    def settings(self) -> Settings:
        """Read the settings; UserError when this is not a run or the file is damaged."""
        if not self.has(RunFile.NAME):
            raise UserError(f"{self.path} is not a run (it has no {RunFile.NAME}): make one with {RunFile.MADE_BY}")
        return self.read(RunFile).settings

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return (self.path / name).is_file()

    def file(self, name: str) -> Path:
        """Return the path of a file of the run."""
        return self.path / name

    def read(self, kind: type[FileType]) -> FileType:
        """Read a file; UserError says what is wrong in it, or what makes it when it is missing."""
        return read_record(self.file(kind.NAME), kind)

    def find(self, kind: type[FileType]) -> FileType | None:
        """Read a file; None when it is not there."""
        return self.read(kind) if self.has(kind.NAME) else None

    def about(self, kind: type[FileRecord]) -> AbstractContextManager[None]:
        """Let what is wrong with a file's content name the file, while the content is used."""
        return about(self.file(kind.NAME))

    def find_for(self, kind: type[PolicyFileType], policy_key: str) -> PolicyFileType | None:
        """Read a file that was made for this policy; None when there is none, or one of a policy that policy.json held
        before.
        """
        record = self.find(kind)
        return record if record is not None and record.policy == policy_key else None

    def write(self, record: FileRecord) -> None:
        """Write a file in one step."""
        write_record(self.file(record.NAME), record)


@functools.cache  # reading the descriptions of packages takes milliseconds, and a process keeps what it has imported
def versions() -> dict[str, str]:
    """Return the installed versions of what decides the result; not to be changed."""
    found = {package: packaged_version([package]) for package in _PACKAGES}
    return {package: version for package, version in found.items() if version is not None}


def _entries(path: Path) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _locked(file: Path) -> int | None:
    """Return a handle that holds the lock of a file, None when another process holds it. The lock ends with its
    process. OSError where the file system has no locks.
    """
    if sys.platform == "win32":  # it has no locks that end with their process
        return os.open(file, os.O_CREAT | os.O_RDWR)
    import fcntl

    while True:
        handle = os.open(file, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            return None
        try:
            if os.path.samestat(os.fstat(handle), file.stat()):
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)  # the file was removed before the lock was taken: another one counts
