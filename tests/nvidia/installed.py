"""Where NVIDIA's packages are that only tests use: below the environment, where `make install` and `make providers` put them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.nvidia.stubs import missing_tools

BINDINGS = ("10.3.0", "10.16.0.72", "11.4.0.106")


def bindings(version: str) -> Path:
    """Return the directory of a version of TensorRT's Python bindings; skips the test without."""
    return _found(Path(os.environ.get("SMPQ_BINDINGS", f"{sys.prefix}/bindings")) / version, "make install", "SMPQ_BINDINGS")


def providers() -> Path:
    """Return the directory of onnxruntime-gpu; skips the test without."""
    return _found(Path(os.environ.get("SMPQ_PROVIDERS", f"{sys.prefix}/providers")), "make providers", "SMPQ_PROVIDERS")


def _found(place: Path, command: str, variable: str) -> Path:
    if missing_tools():
        pytest.skip(f"making the libraries that it needs takes {', '.join(missing_tools())}: install a C compiler")
    if not place.is_dir() or not any(place.iterdir()):
        pytest.skip(f"there is no {place}: run {command}, or name another directory in {variable}")
    return place
