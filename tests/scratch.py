"""Directories for what is made outside of a test: they are gone with the process."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

_KEPT: list[TemporaryDirectory[str]] = []


def scratch() -> Path:
    """Return a new directory."""
    _KEPT.append(TemporaryDirectory(prefix="smpq-tests-"))
    return Path(_KEPT[-1].name)
