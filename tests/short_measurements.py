"""Engines are timed for a tenth of a second and not for one and a half:
no test depends on how narrow the interval is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from deploy.latency import bench
from deploy.runner.protocol import Protocol


@contextmanager
def short_measurements() -> Iterator[None]:
    """Time final engines, and those of a search, for a short time as long as the context is open."""
    with (
        mock.patch.object(bench, "FINAL", Protocol(rounds=9, round_ms=4.0, singles=200, sets=1)),
        mock.patch.object(bench, "THOROUGH", Protocol(rounds=15, round_ms=8.0, sets=1)),
        mock.patch.object(bench, "QUICK", Protocol(round_ms=4.0, sets=1)),
    ):
        yield
