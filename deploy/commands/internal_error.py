"""An error of this program itself: one line for the person, and a file with the details for whoever repairs it."""

from __future__ import annotations

import errno
import sys
import tempfile
import traceback
from pathlib import Path

from calib.errors import UserError, first_line

FILE = "internal-error.log"
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


class InternalError(Exception):
    """An exception that nobody foresaw, with the run that it happened in."""

    def __init__(self, cause: BaseException, run: Path | None) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.run = run

    def message(self) -> str:
        """Write the details down, and return one line that says where they are."""
        what = f"{type(self.cause).__name__}: {first_line(self.cause)[:200]}"
        file = _write(self.cause, self.run)
        where = f"the details are in {file}" if file is not None else "its details could not be written"
        return (
            f"this is a bug in smpq, not in your input ({what}); {where}: please report it. "
            "What the run had finished is kept"
        )


def _write(cause: BaseException, run: Path | None) -> Path | None:
    from deploy.run.directory import versions

    parts = [
        f"command: {' '.join(sys.argv)}",
        f"python: {sys.version}",
        *(f"{name}: {version}" for name, version in versions().items()),
        "",
        *traceback.format_exception(cause),
    ]
    text = "\n".join(parts)
    places = [run] if run is not None and run.is_dir() else []
    for place in (*places, Path(tempfile.gettempdir())):
        try:
            file = place / FILE
            file.write_text(text, encoding="utf-8", errors="replace")
        except OSError:
            continue
        return file
    return None


def foreseen(error: Exception) -> UserError | None:
    """Return what an exception means that the system causes, whichever library raises it; None for any other
    exception.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" ({error.filename})" if error.filename else ""
        return UserError(
            f"the disk is full{where}: free some space and run the same command again; what the run had finished is "
            "kept"
        )
    if isinstance(error, OSError) and error.errno in _REFUSED and error.filename:
        return UserError(f"the system refuses {error.filename} ({error.strerror}): allow it, or name another place")
    text = str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "out of memory" in text.lower():
        return UserError(
            "there is not enough memory: close other programs, or use --memory-limit, fewer --workers, or smaller "
            "batches in the task"
        )
    return None
