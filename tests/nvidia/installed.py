"""Where NVIDIA's packages are that only tests use: below the environment, where `make install` and `make providers` put
them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.nvidia.stubs import missing_tools

BINDINGS = ("10.3.0", "10.16.0.72", "11.4.0.106")


def bindings(version: str) -> Path:
    """Return the directory of a version of TensorRT's Python bindings; skips the test without."""
    return _with_package(
        _place("bindings") / version, "tensorrt_bindings", "make install, or name a directory in SMPQ_BINDINGS"
    )


def providers() -> Path:
    """Return the directory of onnxruntime-gpu; skips the test without."""
    return _with_package(_place("providers"), "onnxruntime", "make providers, or name a directory in SMPQ_PROVIDERS")


def _place(name: str) -> Path:
    return Path(os.environ.get(f"SMPQ_{name.upper()}", Path(sys.prefix) / name))


def _with_package(place: Path, package: str, command: str) -> Path:
    if missing_tools():
        pytest.skip(f"it takes a C compiler and binutils to make stubs: {', '.join(missing_tools())} missing")
    if not (place / package).is_dir():
        pytest.skip(f"there is no {package} in {place}: run {command}")
    return place
