"""Files that are there in full or as they were."""

from __future__ import annotations

import errno
import os

import pytest

from deploy.runner.writing import write_bytes, write_json


def test_a_file_is_there_in_full_or_as_it_was(tmp_path):
    file = tmp_path / "new" / "file"
    write_bytes(file, b"one")
    with pytest.raises(TypeError):
        write_bytes(file, "not bytes")
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, {"ratio": float("nan")})
    assert file.read_bytes() == b"one"
    assert list(file.parent.iterdir()) == [file]


def test_a_full_disk_leaves_no_file_behind(tmp_path, monkeypatch):
    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "measurements.json", {})
    assert list(tmp_path.iterdir()) == []
