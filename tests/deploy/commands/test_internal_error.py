"""What the system refuses is no bug of ours."""

from __future__ import annotations

import errno
import os

import pytest

from deploy.commands.internal_error import foreseen


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.EACCES, "the system refuses /runs/mine (Permission denied): allow it, or name another place"),
        (errno.EROFS, "the system refuses /runs/mine (Read-only file system): allow it, or name another place"),
        (errno.ENOSPC, "the disk is full (/runs/mine): free some space and run the same command again"),
    ],
)
def test_what_the_system_refuses_is_told(code, message):
    assert str(foreseen(OSError(code, os.strerror(code), "/runs/mine"))).startswith(message)


def test_what_nobody_foresaw_stays_so():
    assert foreseen(FileNotFoundError(errno.ENOENT, "No such file", "own.json")) is None
    assert foreseen(ValueError("permission")) is None
