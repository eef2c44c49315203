"""Files that are there in full or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_bytes(file: Path, content: bytes) -> None:
    """Write to a temporary name in the same directory, then rename: a reader sees all of the file or nothing of it,
    even when the power fails.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)  # mkstemp makes files that only their owner can read
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(file: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file in the same way; ValueError for NaN and infinity."""
    write_bytes(file, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())
