"""The kernel times that TensorRT has measured, handed on from build to build: its timing cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.runner.plan_cache import PLAN_SCHEMA, Origin
from deploy.runner.writing import write_bytes


def timing_cache_file(cache: Path, origin: Origin) -> Path:
    """Return where the kernel times are kept that an origin's runtime has measured on its GPU."""
    text = json.dumps(
        [PLAN_SCHEMA, origin.runtime, origin.version, asdict(origin.gpu) if origin.gpu is not None else None]
    )
    return cache / f"timing-{hashlib.sha256(text.encode()).hexdigest()[:16]}.cache"


def set_timing_cache(config: Any, file: Path) -> Any:
    """Give the builder the kernel times of earlier builds, and return the cache, which has to live as long as the
    build.

    The builder refuses a cache that it cannot read, or that was measured with other clocks: it then starts an empty
    one. None when it takes none at all.
    """
    content = file.read_bytes() if file.is_file() else b""
    for start in dict.fromkeys((content, b"")):
        timing = config.create_timing_cache(start)
        if timing is not None and config.set_timing_cache(timing, False):
            return timing
    return None


def save_timing_cache(config: Any, file: Path) -> str | None:
    """Keep the kernel times after a build and return the hash of their file; None, and the file as it was, where the
    builder has none.
    """
    timing = config.get_timing_cache()
    if timing is None:
        return None
    content = bytes(timing.serialize())
    write_bytes(file, content)
    return hashlib.sha256(content).hexdigest()
