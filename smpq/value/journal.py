"""Every evaluation of the search, on disk: a killed run goes on where it was."""

from __future__ import annotations

import sqlite3
import weakref
from pathlib import Path

from calib.errors import UserError

_KEPT = "what the journal holds is kept, and the same command goes on from there"
_REASONS = {
    "database or disk is full": f"the disk is full. Free some space; {_KEPT}",
    "disk i/o error": "the disk is full or does not answer (disk I/O error). Free some space, or mend the disk; "
    f"{_KEPT}",
    "locked": f"another program is using it. Wait until that has ended; {_KEPT}",
    "readonly database": f"it may only be read. Allow writing to it and its directory; {_KEPT}",
    "unable to open database file": "it cannot be opened. See that its directory exists and may be written to",
    "permission denied": "it may not be opened. Allow reading and writing it",
}
"""What SQLite's messages contain, by result code (sqlite.org/rescode.html), and what to do. Python 3.10 does not give
the code itself.
"""


class Journal:
    """A table of evaluations, keyed by what was evaluated on what.

    The fingerprint covers model, data and settings, so that an entry is never read for another network or other
    weights. Rows are only ever added: their `rowid` counts evaluations in the order in which they were finished.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file; UserError when it is not a journal, or cannot be opened or written."""
        self._path = path
        try:
            self._database = sqlite3.connect(path, isolation_level=None)
            weakref.finalize(self, self._database.close)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS evaluations (fingerprint TEXT, policy TEXT, value REAL, PRIMARY KEY "
                "(fingerprint, policy))"
            )
        except sqlite3.Error as error:
            raise _explained(path, error) from error

    def read(self, fingerprint: str) -> dict[str, float]:
        """Return policy key -> value of everything evaluated under one fingerprint."""
        try:
            rows = self._database.execute(
                "SELECT policy, value FROM evaluations WHERE fingerprint = ?", (fingerprint,)
            ).fetchall()
        except sqlite3.Error as error:  # a file that was cut off opens, and fails here
            raise _explained(self._path, error) from error
        return dict(rows)

    def add(self, fingerprint: str, policy: str, value: float) -> None:
        """Write one evaluation; it survives a kill from here on. Nothing is evaluated twice: a second value is an
        error.

        Raises UserError when the file cannot be written, as on a full disk.
        """
        try:
            self._database.execute("INSERT INTO evaluations VALUES (?, ?, ?)", (fingerprint, policy, value))
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise _explained(self._path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _explained(path: Path, error: sqlite3.Error) -> UserError:
    """Return what the user has to change; only a file that is damaged or something else is to be deleted."""
    said = str(error).lower()
    for part, advice in _REASONS.items():
        if part in said:
            return UserError(f"{path}: {advice}")
    return UserError(f"{path} is damaged or is no journal ({error}): delete it to evaluate again")
