"""`run.json`: what a run was asked to do, and with what."""

from __future__ import annotations

from calib.files.storage import AboveZero, FileRecord, Positive, Record
from calib.network.fingerprint import Fingerprint
from deploy.run.settings import Settings


class ResourcesRow(Record, frozen=True, kw_only=True):
    """`smpq.value.workers.resources.Resources` of the last command, as information."""

    workers: Positive | None
    ray: str | None
    memory_limit_mb: AboveZero | None
    device: str


class RunFile(FileRecord, frozen=True, kw_only=True):
    """`run.json`: the settings of a run, what it is about (`fingerprint`), and the versions that made it.

    `trainable` says whether the task has training data; None where an older version made the run. `address` is that of
    the machine that the last command that times engines was given, "" where that was this one.
    """

    NAME = "run.json"
    MADE_BY = "smpq run or smpq score"
    VERSION = 3

    settings: Settings
    fingerprint: Fingerprint
    versions: dict[str, str]
    resources: ResourcesRow | None = None
    trainable: bool | None = None
    address: str = ""
