"""Every evaluation of the search, on disk: a killed run goes on where it was."""

from __future__ import annotations

import sqlite3
import weakref
from pathlib import Path

from calib.errors import UserError


class Journal:
    """A table of evaluations, keyed by what was evaluated on what.

    The fingerprint covers model, data and settings, so that an entry is never read for another network or other weights. Rows are only
    ever added: their `rowid` counts evaluations in the order in which they were finished.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file; UserError when it is not a journal."""
        self._path = path
        try:
            self._database = sqlite3.connect(path, isolation_level=None)
            weakref.finalize(self, self._database.close)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS evaluations (fingerprint TEXT, policy TEXT, value REAL, PRIMARY KEY (fingerprint, policy))"
            )
        except sqlite3.Error as error:
            raise UserError(f"{path} cannot be read ({error}): delete it to evaluate again") from error

    def read(self, fingerprint: str) -> dict[str, float]:
        """Return policy key -> value of everything evaluated under one fingerprint."""
        try:
            rows = self._database.execute("SELECT policy, value FROM evaluations WHERE fingerprint = ?", (fingerprint,)).fetchall()
        except sqlite3.Error as error:  # a file that was cut off opens, and fails here
            raise UserError(f"{self._path} cannot be read ({error}): delete it to evaluate again") from error
        return dict(rows)

    def add(self, fingerprint: str, policy: str, value: float) -> None:
        """Write one evaluation; it survives a kill from here on. Nothing is evaluated twice: a second value is an error.

        Raises UserError when the file cannot be written, as on a full disk.
        """
        try:
            self._database.execute("INSERT INTO evaluations VALUES (?, ?, ?)", (fingerprint, policy, value))
        except sqlite3.OperationalError as error:
            raise UserError(f"cannot write {self._path}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._database.close()
