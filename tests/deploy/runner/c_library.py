"""Compile C files of the tests to libraries under the names of NVIDIA's."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def compiled(source: str, library: Path, *options: str) -> Path:
    """Compile one of the C files beside this one; skips the test where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler: apt-get install gcc")
    command = [compiler, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", *options]
    subprocess.run([*command, HERE / source, "-o", library], check=True)
    return library


def folder_of_header(name: str) -> Path:
    """Return where a header of the CUDA toolkit is; skips the test where it is not installed."""
    for folder in _folders():
        if (folder / name).is_file():
            return folder
    pytest.skip(f"needs {name}: pip install nvidia-cuda-runtime-cu12, or the CUDA toolkit")


def _folders() -> Iterator[Path]:
    yield Path("/usr/local/cuda/include")
    for package in ("nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime"):
        with suppress(PackageNotFoundError):
            yield from {Path(str(file.locate())).parent for file in files(package) or () if file.name == "cuda.h"}
