"""What `smpq doctor` finds, as a typed record."""

from __future__ import annotations

from typing import ClassVar, Literal

from calib.files.storage import FileRecord, Record
from deploy.doctor.facts import Facts

State = Literal["ok", "note", "problem"]


class Finding(Record, frozen=True, kw_only=True):
    """What is there of one subject. `mends` are commands that change it: needed for a problem, a choice for a note."""

    subject: str
    state: State
    text: str
    mends: tuple[str, ...] = ()


class Works(Record, frozen=True, kw_only=True):
    """What works for the targets of a family: None, or why it does not."""

    family: str
    search: str | None
    build: str | None
    measure: str | None

    @property
    def times(self) -> bool:
        """Whether engines can be built and timed."""
        return self.build is None and self.measure is None


class DoctorRecord(FileRecord, frozen=True, kw_only=True):
    """The answer of `smpq doctor`.

    `device` is the address that was asked, empty for this machine. `met` says whether `target` works, or without one
    whether engines of any family can be built and timed. `facts` is None where the Python there is too old to tell more
    than its version.
    """

    VERSION: ClassVar[int] = 1
    device: str
    target: str | None
    met: bool
    findings: tuple[Finding, ...]
    works: tuple[Works, ...]
    mends: tuple[str, ...]
    choices: tuple[str, ...]
    facts: Facts | None
