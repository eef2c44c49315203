"""What reads and writes the typed files of a run."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from calib.files.storage import FileRecord

FileType = TypeVar("FileType", bound=FileRecord)


class RecordStore(Protocol):
    """The typed files of one directory; `deploy.run.directory.Run` is one."""

    def find(self, kind: type[FileType]) -> FileType | None:
        """Read a file; None when it is not there."""
        ...

    def about(self, kind: type[FileRecord]) -> AbstractContextManager[None]:
        """Name the file in an error that its content causes inside the context."""
        ...

    def write(self, record: FileRecord) -> None:
        """Write a file in one step."""
        ...
